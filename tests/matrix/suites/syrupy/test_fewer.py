def test_first(snapshot):
    assert "first" == snapshot


def test_second(snapshot):
    assert "second" == snapshot
