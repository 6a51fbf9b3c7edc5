"""Packaging. The settings of the tools are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
README = HERE / "README.md"
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "vit_jax/__init__.py").read_text())[1]

# Lower bounds are what is tested. An upper bound is there only where a release is known to break.
CORE = [
    "absl-py>=2.1",
    "flatbuffers>=25.2",  # jax.export writes with it and does not install it
    "flax>=0.12.7",
    "grain>=0.2.18",
    "importlib_resources>=6.0",  # tensorflow-datasets imports it and does not install it
    "jax>=0.10",
    "matplotlib>=3.9",
    "ml-collections>=1.1",
    "numpy>=2.1",
    "opencv-python-headless>=4.11",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12.8",
    "pillow>=11.0",
    "psutil>=6.0",
    "safetensors>=0.6",
    "scikit-learn>=1.6",
    "simplejpeg>=1.8",
    "tensorboardX>=2.6.4",
    "tensorflow-datasets>=4.9.10",
    "tqdm>=4.67",
]

# It has wheels for these; elsewhere images are decoded whole, to the same pixels.
TURBOJPEG = "turbojpeg>=0.0.2; python_version < '3.14' and platform_machine in 'x86_64 arm64 AMD64'"

EXTRAS = {
    "gpu": ["jax[cuda12]"],  # drivers from 525 on; [gpu13] needs 580
    "gpu13": ["jax[cuda13]"],
    "tpu": ["jax[tpu]"],
    # TensorFlow is needed once, to prepare a data set, and never to train or evaluate.
    "prepare": [
        "h5py>=3.10",
        "scipy>=1.13",
        "tensorflow>=2.18; platform_machine != 'x86_64'",
        "tensorflow-cpu>=2.18; platform_machine == 'x86_64'",
    ],
    "hf": ["datasets>=3.0", "huggingface_hub>=0.30"],
    "onnx": ["onnx>=1.17", "onnxruntime>=1.20"],
    "openvino": ["onnx>=1.17", "openvino>=2025.0"],
    "int8": ["qwix>=0.1.8"],
    # Crops decode only their region of a JPEG; a system's libjpeg-turbo 3 does as well.
    "turbojpeg": [TURBOJPEG],
    "wandb": ["wandb>=0.18"],
    # What proves conversions. timm's torchvision must fit torch; see docs/weights.md for CPU only.
    "peers": ["timm>=1.0.20", "torch>=2.8", "transformers>=5.0"],
    "docs": ["mkdocs>=1.6,<2", "mkdocs-material>=9.6", "mkdocstrings[python]>=0.30"],
    "test": [
        "datasets>=3.0",
        "hypothesis>=6.140",
        "mypy>=1.18",
        "pytest>=8.3",
        "pytest-xdist>=3.6",
        "ruff>=0.14",
        "tensorboard>=2.18",
        TURBOJPEG,
    ],
}

setup(
    name="vit_jax",
    version=VERSION,
    description="The Vision Transformer in JAX: pre-training, fine-tuning, evaluation, export.",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    author="The vit_jax authors",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    # The configs are at the top of the repository for those who read it, and inside the package
    # for those who installed it.
    packages=[
        *find_packages(include=["vit_jax", "vit_jax.*"]),
        "vit_jax.configs",
        "vit_jax.configs.studies",
    ],
    package_dir={"vit_jax.configs": "configs"},
    package_data={
        "": ["*.csv", "*.json", "*.txt"],
        "vit_jax": ["py.typed"],
        "vit_jax.pages": ["templates/*"],
    },
    install_requires=CORE,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["vit-jax = vit_jax.cli:main"]},
    classifiers=[
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
