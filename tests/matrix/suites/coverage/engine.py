def render(template, only):
    with open(template) as file:
        lines = file.read().splitlines()
    return [
        render_line(template, number, line) for number, line in enumerate(lines, 1) if only(number)
    ]


def render_line(template, number, line):
    done = line.upper()
    return done
