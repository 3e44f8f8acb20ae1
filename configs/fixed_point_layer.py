"""Fixed-Point Iteration Layer (Jeon, Lee, Choi, 2021).

    python launch.py --config=configs/fixed_point_layer.py[:variant] [--study]

denoise    embedded photographs, noise 25/255: the limit against the same module applied once
maze       generated mazes: the same, and three applications; generalisation to larger mazes
bibtex_nn  Bibtex tags, FPI_NN against an MLP of the same width; the paper reports F1 0.434
bibtex_gd  the same with FPI_GD; 0.432
imagenet   denoising of 224 x 224 colour crops, batch 1024, for a pod

What to expect, and how long each took on which machine, is in papers/fixed_point_layer/README.md.
"""

from ml_collections import ConfigDict

from reprise.common import config as base

VARIANTS = ("denoise", "maze", "bibtex_nn", "bibtex_gd", "imagenet")


def get_config(variant: str = "denoise") -> ConfigDict:
    config = base.defaults("fixed_point_layer", variant, VARIANTS)
    config.model = ConfigDict()
    config.model.solver = "picard"  # or "anderson", "broyden"
    config.model.unroll = 0  # 0: the limit; k: the map applied k times, the feed-forward relative
    config.data = ConfigDict()
    {"denoise": _denoise, "maze": _maze, "imagenet": _imagenet}.get(variant, _bibtex)(config)
    return config


def _denoise(config: ConfigDict) -> None:
    config.datasets = ("photos",)
    config.num_steps, config.batch_size = 1500, 16
    config.log.every = 20
    config.checkpoint.every = 250
    config.optimizer = base.optimizer("adam", 2e-3)
    config.optimizer.schedule.name = "cosine_decay_schedule"
    config.optimizer.clip_norm = 1.0
    config.study.over_seeds = "map"  # vmapped convolutions are slow on CPUs
    config.model.task = "denoise"
    config.model.features = 24  # channels of x
    config.model.contraction = 0.9  # bound on the Lipschitz constant of the map
    config.model.solver = "anderson"
    config.model.tol = 1e-5  # squared relative step at which an image stops
    config.model.max_iter = 20
    config.data.name = "photos"
    config.data.channels = 1
    config.data.patch = 24  # pixels a side, in training
    config.data.test_crop = 80
    config.data.sigma = 25 / 255  # standard deviation of the noise, images in [0, 1]


def _maze(config: ConfigDict) -> None:
    config.num_steps, config.batch_size = 800, 32
    config.optimizer = base.optimizer("adam", 3e-3)
    config.optimizer.clip_norm = 1.0
    config.steps_per_dispatch = 20
    config.study.over_seeds = "map"
    config.model.task = "maze"
    config.model.features = 16
    config.model.tol = 1e-8  # squared: a relative step of 1e-4
    config.model.max_iter = 60
    config.model.radius_penalty = 0.0  # weight of max(0, spectral radius - target)^2
    config.model.radius_target = 0.95
    config.data.train, config.data.test = 1000, 300  # mazes; a third as many large ones to test
    config.data.size = 10  # cells a side; the large ones have twice


def _bibtex(config: ConfigDict) -> None:
    config.datasets = ("bibtex",)
    config.model.task = "bibtex"
    gd = config.variant == "bibtex_gd"
    config.model.form = "gd" if gd else "nn"  # or "mlp", the baseline
    config.model.features = 512 if gd else 600
    # Of the gradient step on the energy. The paper's 1 is so short (the energy is a mean over 512
    # units) that descent takes thousands of steps to arrive; a longer one has the same minimum.
    config.model.step_size = 20.0
    # The map of FPI_NN oscillates under the plain iteration once it has learnt that few labels are
    # on; anderson converges. FPI_GD's energy has no finite minimum for a label that is off (see
    # `FPIGD`): descent is cut off, and so is its backward iteration.
    config.model.solver = "picard" if gd else "anderson"
    config.model.relative = not gd
    config.model.tol = 1e-6 if gd else 1e-8  # squared; gd: of an example's step, absolute
    config.model.max_iter = 50 if gd else 40
    config.model.backward_solver = "picard" if gd else "anderson"
    config.model.backward_tol = 1e-14 if gd else 1e-8
    config.model.backward_max_iter = 1 if gd else 0  # products with J^T; 0: as many as forward
    config.model.dropout = 0.0 if gd else 0.5  # of the inputs y, in training
    # 4392 rows remain for training: 110 steps of 40, or 55 of 80, are an epoch.
    config.batch_size = 80 if gd else 40
    steps = 55 if gd else 110
    config.num_steps = steps * (80 if gd else 40)
    config.eval_every = steps
    config.steps_per_dispatch = steps
    config.log.every = steps
    config.checkpoint.every = steps * 20
    config.study.over_seeds = "map"
    # Rate and schedule of every arm are the best of 1e-4, 3e-4, 1e-3, 3e-3 and 1e-2, constant or
    # cosine, and its dropout the best of 0 and 0.5, by F1 on validation with seed 0.
    config.optimizer = base.optimizer("adam", 3e-3)
    config.optimizer.schedule.name = "cosine_decay_schedule"
    config.optimizer.clip_norm = 0.0 if gd else 1.0


def _imagenet(config: ConfigDict) -> None:
    _denoise(config)
    config.datasets = ("imagenet2012",)
    config.num_steps, config.batch_size = 50_000, 1024
    config.eval_every = 5000
    config.precision = "bfloat16"
    config.model.features = 64
    config.data.name = "imagenet2012"
    config.data.channels = 3
    config.data.patch = config.data.test_crop = 224
