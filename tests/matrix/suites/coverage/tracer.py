"""A file tracer for a template language: every line of a .tpl file is a call."""
import os

from coverage import CoveragePlugin, FileReporter, FileTracer


class Plugin(CoveragePlugin):
    def file_tracer(self, filename):
        if os.path.basename(filename) == "engine.py":
            return Tracer()
        return None

    def file_reporter(self, filename):
        return Reporter(filename)


class Tracer(FileTracer):
    def source_filename(self):
        return ""

    def has_dynamic_source_filename(self):
        return True

    def dynamic_source_filename(self, filename, frame):
        if frame.f_code.co_name == "render_line":
            return frame.f_locals["template"]
        return None

    def line_number_range(self, frame):
        number = frame.f_locals["number"]
        return number, number


class Reporter(FileReporter):
    def lines(self):
        with open(self.filename) as file:
            return {number for number, line in enumerate(file, 1) if line.strip()}


def coverage_init(registry, options):
    registry.add_file_tracer(Plugin())
