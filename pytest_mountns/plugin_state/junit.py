"""pytest's JUnit XML: what ``record_testsuite_property`` and ``record_xml_attribute`` record.

Both change the object that writes the file when the session ends. What ``record_property`` records
is part of reports and needs nothing here.
"""

from __future__ import annotations

from typing import Any, cast

import pytest

from .. import pytest_internals
from .base import PluginState


class JUnit(PluginState):
    """Brings properties of the test suite and attributes of tests to the pytest process."""

    name = "junitxml"

    def __init__(self, xml: Any) -> None:
        self._xml = xml
        self._properties = 0

    def begin(self, item: pytest.Item) -> None:
        """Note how many properties there are."""
        self._properties = len(self._xml.global_properties)

    def goes_with(self, report: pytest.TestReport | None) -> bool:
        """With that of a teardown: when it is logged, the element of the test is complete."""
        return report is not None and report.when == "teardown"

    def collect(self, item: pytest.Item) -> object:
        """Return the properties that were added, and the attributes of the test."""
        properties = self._xml.global_properties[self._properties :]
        self._properties += len(properties)
        noted = pytest_internals.junit_reporter(self._xml, item).attrs
        attributes = dict(noted)
        # Whatever comes after the teardown is another attempt, with an element of its own.
        noted.clear()
        return (properties, attributes) if properties or attributes else None

    def merge(self, item: pytest.Item, state: object) -> None:
        """Add the properties and the attributes."""
        properties, attributes = cast("tuple[list[Any], dict[str, str]]", state)
        self._xml.global_properties.extend(properties)
        if attributes:
            pytest_internals.junit_reporter(self._xml, item).attrs.update(attributes)


def find_junit(config: pytest.Config) -> PluginState | None:
    """The state if the session writes a JUnit XML file."""
    xml = pytest_internals.junit_log(config)
    return None if xml is None else JUnit(xml)
