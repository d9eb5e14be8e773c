import pytest, torch
@pytest.fixture(autouse=True)
def f():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
