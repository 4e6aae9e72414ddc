import requiem_systemd


def test_imports() -> None:
    """It imports."""
    assert requiem_systemd.__file__ is not None
