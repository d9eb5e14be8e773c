"""How graphs run in tests."""

import pytest

from zsp.inference.compilation import lowering


@pytest.fixture
def interpreted(monkeypatch):
    """Graphs that would be compiled run as they are, operation by operation, without Inductor."""
    monkeypatch.setattr(lowering, "_lower", lambda graph, *rest: lambda given: graph(*given))
