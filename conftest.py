"""The suite of the plugin; `pytester` runs pytest within the tests."""

pytest_plugins = ["pytester"]
