"""One task of VTAB-1k, section 4.1 and Table 9: 1,000 training images, the whole test split.

  vit-jax train --config=configs/vtab.py:checkpoint,caltech101 --workdir=DIR \\
      --config.init_from=B/16-imagenet21k
  vit-jax evaluate --suite=vtab --checkpoint=B/16-imagenet21k --out=DIR       all prepared tasks

The argument is VARIANT,TASK[,SIZE]. TASK is one of the nineteen of `vit-jax prepare vtab`. With
dev=True the run trains on train800 and is tested on val200, to choose what the paper chose by the
mean over all tasks.

All tasks share hyper-parameters and resolution: learning rate 0.01, 2,500 steps, batch 512, 384
pixels, cosine decay, as Table 4's other rows. Random crop and flip, but no flip where it would
change the label (dSpr-Ori, dSpr-Loc, sNORB-Azim), and no crop where that would (Clevr-Count,
Clevr-Dist, DMLab, KITTI-Dist, dSpr-Loc).

Cost: 2,500 steps per task; L/16 at 384 takes 28 exaFLOPs for all. Expected (Table 9, mean):
H/14 from JFT 77.6, L/16 from JFT 76.3, L/16 from ImageNet-21k 72.7.
"""

from vit_jax import config as configuration

NO_FLIP = {"dsprites_orientation", "dsprites_location", "smallnorb_azimuth"}
NO_CROP = {"clevr_count", "clevr_distance", "dmlab", "kitti_distance", "dsprites_location"}


def get_config(argument=""):
    a = configuration.arguments(
        argument, variant="checkpoint", task="caltech101", size=384, dev=False
    )
    task, size = a["task"], a["size"]

    c = configuration.default()
    c.name = f"VTAB {task}" + (", choosing" if a["dev"] else "")
    c.model.variant = a["variant"]
    c.model.image_size = size
    c.data.dataset = f"vtab:{task}"
    c.data.train_split = "train800" if a["dev"] else "train800val200"
    c.data.eval_split = "val200" if a["dev"] else "test"

    augment = {"flip": task not in NO_FLIP}
    if task in NO_CROP:
        augment |= {"name": "resize_flip"}
    else:
        augment |= {"name": "resize_crop", "resize": round(size * 448 / 384)}
    c.augment = configuration.ConfigDict(augment)
    c.eval_preprocess = configuration.ConfigDict({"name": "resize"})

    c.batch_size = 512
    c.total_steps = 2_500
    c.optimizer = configuration.ConfigDict(
        {"name": "sgd", "momentum": 0.9, "weight_decay": 0.0, "accumulator_dtype": "bfloat16"}
    )
    c.schedule.decay = "cosine"
    c.schedule.learning_rate = 0.01
    c.schedule.warmup_steps = 200
    c.gradient_clip_norm = 1.0
    c.loss = configuration.ConfigDict({"name": "softmax_cross_entropy", "label_smoothing": 0.0})

    c.log_every_steps = 50
    c.checkpoint_every_steps = 500
    return c
