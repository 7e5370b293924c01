import pytest


class SpecError(Exception):
    pass


class SpecItem(pytest.Item):
    def __init__(self, *, spec, **more):
        super().__init__(**more)
        self.spec = spec
        self.add_marker("spec")
        if "xfail" in spec:
            self.add_marker(pytest.mark.xfail(reason="says so"))

    def setup(self):
        if self.spec.get("setup") == "broken":
            raise SpecError("setup", 1)
        print("item setup", self.name)

    def runtest(self):
        self.user_properties.append(("of", self.name))
        print("item runs", self.name)
        if "skip" in self.spec:
            pytest.skip("says so")
        for key, value in self.spec.items():
            if key == "equal":
                first, _, second = value.partition(" ")
                if first != second:
                    raise SpecError(first, second)

    def teardown(self):
        print("item teardown", self.name)

    def repr_failure(self, excinfo):
        if isinstance(excinfo.value, SpecError):
            return f"spec failed: {excinfo.value.args[0]!r} is not {excinfo.value.args[1]!r}"
        return super().repr_failure(excinfo)

    def reportinfo(self):
        return self.path, 0, f"spec: {self.name}"


class SpecFile(pytest.File):
    def setup(self):
        print("file setup")

    def collect(self):
        for block in self.path.read_text().split("\n\n"):
            name, *lines = block.strip().splitlines()
            spec = dict(line.strip().split(": ", 1) for line in lines)
            yield SpecItem.from_parent(self, name=name.rstrip(":"), spec=spec)


def pytest_collect_file(parent, file_path):
    if file_path.suffix == ".spec":
        return SpecFile.from_parent(parent, path=file_path)


def pytest_configure(config):
    config.addinivalue_line("markers", "spec: from a file")
