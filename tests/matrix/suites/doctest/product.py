"""A module.

>>> given
7
>>> 1 / 0
Traceback (most recent call last):
ZeroDivisionError: division by zero
"""


def works():
    """
    >>> works()
    'it works'
    """
    return "it works"


def differs():
    """
    >>> differs()
    [1, 2, 4]
    >>> differs()[0]
    2
    """
    return [1, 2, 3]


def raises():
    """
    >>> raises()
    1
    """
    raise ValueError("not one")


def writes():
    """
    >>> _ = (directory / "file").write_text("x")
    >>> (directory / "file").read_text()
    'x'
    >>> print("many words here")  # doctest: +ELLIPSIS
    many ... here
    """


def skipped():
    """
    >>> import pytest
    >>> pytest.skip("not today")
    """
