"""Position-embedding interpolation and head surgery."""

import numpy as np
import pytest
from golden import load_golden  # tests/golden_data: numbers of the original implementation

from vit_jax import models, resize_position_embedding
from vit_jax.errors import UserError
from vit_jax.interop import adapt
