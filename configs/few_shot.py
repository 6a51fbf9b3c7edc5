"""Pre-training on a random part of a data set, with few-shot evaluation: Figure 4, section 4.3.

  vit-jax train --config=configs/few_shot.py:L/16,jft,9000000 --workdir=DIR
  vit-jax train --config=configs/few_shot.py:B/32,tfds:imagenet21k,0,folder:/data/pets --workdir=DIR

The argument is VARIANT,DATASET,EXAMPLES[,TARGET]. EXAMPLES is the size of the part (the paper's are
9, 30, 90 and 300 million), 0 for all; records are stored in random order, so that the first are a
random sample. TARGET is the data set of the few-shot evaluation, ImageNet unless named: its
training split gives the shots, its test (for ImageNet validation) split the accuracy.

Hyper-parameters are those of Table 3 for JFT at every size, without more regularisation. The paper
stops early: take the best evaluation in metrics.jsonl. It does not say whether the parts have the
same epochs or the same steps; here it is the same epochs.

Expected, ImageNet 5-shot, read from Figure 4: B/32 far below R50x1 at 9M and above it from 90M on;
L/16 against R152x2 likewise. Cost: for 300M examples as in Table 6, in proportion for less.
"""

from vit_jax import config as configuration

MODELS = ("L/16", "L/32", "B/32", "b/32", "R50x1", "R152x2")  # Figure 4


def get_config(argument=""):
    a = configuration.arguments(
        argument, variant="B/32", dataset="jft", examples=0, target="tfds:imagenet2012"
    )
    c = configuration.load(f"configs/pretrain.py:{a['variant']},{a['dataset']},like=jft")
    part = f", {configuration.human(a['examples'])} examples" if a["examples"] else ""
    c.name = f"few-shot accuracy of {a['variant']} on {a['dataset']}{part}"
    if a["examples"]:
        if not c.data.train_split:
            c.data.train_split, c.data.eval_split = "train", "test"
        name, _, bounds = c.data.train_split.partition("[")
        start = int(bounds.partition(":")[0] or 0)  # after the part held out for evaluation
        c.data.train_split = f"{name}[{start or ''}:{start + a['examples']}]"
    c.evaluators.fewshot.data = a["target"]
    c.evaluators.fewshot.shots = (5, 10)
    c.evaluators.fewshot.every_epochs = 0.5
    return c
