"""The one package that touches pytest's internals: ``_pytest``, and pluggy's lists of hooks.

Each function says which internal it uses. All of them work with pytest 8.0 to 9.x.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from _pytest.outcomes import OutcomeException

from .frames import drop_unseen, fill_in_lines, unseen
from .reports import (
    Phase,
    expects_failure,
    failed_report,
    failed_subtests,
    fields_of,
    interrupt_text,
    junit_log,
    junit_reporter,
    mark_as_shown,
    merge_teardown,
    passed_report,
    record_warnings,
    recorded_warnings,
    report_of,
    set_failed_subtests,
    show_interrupt,
    shown_by_debugger,
    take_recorded_warnings,
    warn_of,
    warn_of_session,
)
from .running import (
    Delegated,
    Reporters,
    WiderScope,
    Within,
    basetemp,
    choose_basetemp,
    drop,
    fill_wider_fixtures,
    finalize_last,
    forget_setup,
    is_tmp_path,
    is_torn_down,
    keep_own_finalizers,
    keep_reporters_quiet,
    make_basetemp,
    module_of,
    others_wrap_setup,
    place_finalizers,
    put_back_finalizers,
    run_in_protocol,
    set_basetemp,
    set_stopping,
    set_up_own_session_fixtures,
    sets_up_wider_fixtures,
    shared_fixture_to_set_up,
    skip_item,
    stop_at_item,
    stopping,
    tear_down_function_scope,
    tear_down_item,
    tear_down_wider,
    wider_scope,
    wider_teardown_is_due,
    wider_teardown_runs_code,
)
from .settings import (
    Watchdog,
    base_temporary_directory,
    cache_directory,
    flush_trace,
    is_tracing,
    make_cache_directory,
    real_stderr,
    user_name,
    watchdog,
)

if TYPE_CHECKING:
    from .attributes import (
        Watched,
        foreign_attributes,
        foreign_config_attributes,
        kept_open,
        named_plugins,
        number_of_plugins,
        value_of_fixture,
        watched_plugins,
    )
    from .failures import noted_failures
    from .screen import (
        Screen,
        capture_suspended,
        captured_so_far,
    )

__all__ = [
    "Delegated",
    "OutcomeException",
    "Phase",
    "Reporters",
    "Screen",
    "Watchdog",
    "Watched",
    "WiderScope",
    "Within",
    "base_temporary_directory",
    "basetemp",
    "cache_directory",
    "capture_suspended",
    "captured_so_far",
    "choose_basetemp",
    "drop",
    "drop_unseen",
    "expects_failure",
    "failed_report",
    "failed_subtests",
    "fields_of",
    "fill_in_lines",
    "fill_wider_fixtures",
    "finalize_last",
    "flush_trace",
    "foreign_attributes",
    "foreign_config_attributes",
    "forget_setup",
    "interrupt_text",
    "is_tmp_path",
    "is_torn_down",
    "is_tracing",
    "junit_log",
    "junit_reporter",
    "keep_own_finalizers",
    "keep_reporters_quiet",
    "kept_open",
    "make_basetemp",
    "make_cache_directory",
    "mark_as_shown",
    "merge_teardown",
    "module_of",
    "named_plugins",
    "noted_failures",
    "number_of_plugins",
    "others_wrap_setup",
    "passed_report",
    "place_finalizers",
    "put_back_finalizers",
    "real_stderr",
    "record_warnings",
    "recorded_warnings",
    "report_of",
    "run_in_protocol",
    "set_basetemp",
    "set_failed_subtests",
    "set_stopping",
    "set_up_own_session_fixtures",
    "sets_up_wider_fixtures",
    "shared_fixture_to_set_up",
    "show_interrupt",
    "shown_by_debugger",
    "skip_item",
    "stop_at_item",
    "stopping",
    "take_recorded_warnings",
    "tear_down_function_scope",
    "tear_down_item",
    "tear_down_wider",
    "unseen",
    "user_name",
    "value_of_fixture",
    "warn_of",
    "warn_of_session",
    "watchdog",
    "watched_plugins",
    "wider_scope",
    "wider_teardown_is_due",
    "wider_teardown_runs_code",
]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        # Only forked tests need these modules, so they are loaded before the first fork.
        for place in ("attributes", "failures", "screen") if name in __all__ else ():
            module = import_module(f".{place}", __name__)
            if hasattr(module, name):
                value = globals()[name] = getattr(module, name)
                return value
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
