IMPORTED = True


def wide():
    return "wide"


def narrow(number):
    if number > 2:
        return "big"
    return "small"


def torn_down():
    return "torn down"


def in_thread(found):
    found.append(1)


def in_wide_teardown():
    return 1


def failing():
    value = 1
    raise ValueError(value)


def looped(numbers):
    total = 0
    for number in numbers:
        if number % 2:
            continue
        total += number
    return total


def never():
    return "never"
