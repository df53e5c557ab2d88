"""One JAX for every test: eight CPU devices, and the strict promotion modes."""

import os

_DEVICES = "--xla_force_host_platform_device_count"
if _DEVICES not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_DEVICES}=8".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("KERAS_BACKEND", "jax")

import jax  # noqa: E402  (it reads the environment when it is imported)
import pytest  # noqa: E402
from jax.sharding import AxisType  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture(scope="session", params=[AxisType.Auto, AxisType.Explicit], ids=lambda x: x.name)
def mesh(request: pytest.FixtureRequest) -> jax.sharding.Mesh:
    """All devices along "data", with each way of naming a sharding."""
    assert jax.device_count() > 1, "the laws of a mesh need several devices"
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(request.param,))
