"""pytest's own JUnit XML: ``record_testsuite_property`` and ``record_xml_attribute``.

Both write into the object that writes the file; ``record_property`` does not, it is in reports.
"""

from __future__ import annotations

from typing import Any, cast

import pytest

from .. import pytest_internals
from .base import PluginState


class JUnit(PluginState):
    name = "junitxml"

    def __init__(self, xml: Any) -> None:
        self._xml = xml
        self._properties = 0

    def begin(self, item: pytest.Item) -> None:
        self._properties = len(self._xml.global_properties)

    def collect(self, item: pytest.Item) -> object:
        properties = self._xml.global_properties[self._properties :]
        attributes = dict(pytest_internals.junit_reporter(self._xml, item).attrs)
        return (properties, attributes) if properties or attributes else None

    def merge(self, item: pytest.Item, state: object) -> None:
        properties, attributes = cast("tuple[list[Any], dict[str, str]]", state)
        self._xml.global_properties.extend(properties)
        if attributes:
            pytest_internals.junit_reporter(self._xml, item).attrs.update(attributes)


def find_junit(config: pytest.Config) -> PluginState | None:
    xml = pytest_internals.junit_log(config)
    return None if xml is None else JUnit(xml)
