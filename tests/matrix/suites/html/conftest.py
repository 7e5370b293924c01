import pytest
import pytest_html


def pytest_html_results_table_header(cells):
    cells.insert(2, "<th>Description</th>")


def pytest_html_results_table_row(report, cells):
    cells.insert(2, f"<td>{getattr(report, 'description', '')}</td>")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    report = outcome.get_result()
    report.description = str(item.function.__doc__)
    extras = getattr(report, "extras", [])
    if report.when == "call":
        extras.append(pytest_html.extras.text(f"text of {item.name}"))
        extras.append(pytest_html.extras.json({"name": item.name}))
        report.extras = extras
