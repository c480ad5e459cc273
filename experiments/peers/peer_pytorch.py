"""Our recipe against what a user would pick instead, in the same time on the same cores.

    python experiments/peers/peer_pytorch.py --ours runs/fer2013 --data FOLDER

The peer is PyTorch with pytorch-metric-learning: batch-hard miner and triplet loss (margin 0.2, on the
normalised embedding), and cross-entropy by a linear head on it. All else is as in the config of our
finished run: ResNet, batches and augmentation (they come from our pipeline), AdamW, schedule, clipping,
label smoothing, running mean of the weights, seed, and the time that training and evaluation took. The
peer takes as many steps as that time allows by the rates that it measures first, in `channels_last`,
its fastest layout (benchmark_training.py). Both are evaluated by the same code. It runs in an
environment of its own (the CPU build of PyTorch: the other one and TensorFlow crash each other):

    pip install '.[train]' torch==2.13.0 pytorch-metric-learning==2.9.0

Rows go to results/peer_pytorch.csv, accuracy against wall-clock to figures/peer_pytorch.png.
"""

import argparse
import importlib.metadata
import json
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).absolute().parents[1] / 'studies'))

import numpy as np
import tensorflow as tf
import torch
from pytorch_metric_learning.losses import TripletMarginLoss
from pytorch_metric_learning.miners import BatchHardMiner
from study import ROOT, append_row, describe_software, read_rows
from study_figures import save
from torch import nn
from torch_resnet import TorchResNet

from mtdml_jax.config import apply_overrides, read_config
from mtdml_jax.data.pipeline import eval_batches, train_batches
from mtdml_jax.data.protocol import load_protocol_split
from mtdml_jax.scoring.classify import predict_classes
from mtdml_jax.scoring.embed import EmbeddedSplit
from mtdml_jax.training.state import make_schedule

MARGIN, LOOKS, RATE_STEPS = 0.2, 8, 200
CONTESTANTS = {
    'mtdml_jax': '#0072b2',
    'PyTorch + pytorch-metric-learning': '#d55e00',
}
OURS, PEER = CONTESTANTS


class Peer(nn.Module):
    """The backbone, its embedding [B, E] and logits [B, C], as the usual script has them."""

    def __init__(self, config, num_classes):
        super().__init__()
        model = config.model
        self.backbone = TorchResNet(
            model.backbone,
            width=round(64 * model.width_factor),
            stem=model.stem,
            channels=config.data.channels,
        )
        self.embedding = nn.Linear(self.backbone.num_features, model.embedding_size)
        self.classes = nn.Linear(model.embedding_size, num_classes)

    def forward(self, images):
        """Images [B, channels, H, W] -> (unit embeddings [B, E], logits [B, C])."""
        embedding = self.embedding(self.backbone(images))
        return nn.functional.normalize(embedding), self.classes(embedding)


def as_torch(images):
    """[B, H, W, channels] of NumPy -> [B, channels, H, W], `channels_last` in memory."""
    return torch.tensor(images).permute(0, 3, 1, 2)


def make_step(network, average, config, num_steps):
    """A function that takes one training step, (step, batch) -> None."""
    optim, rate_of = config.optim, make_schedule(config.optim, num_steps)
    kernels = [x for x in network.parameters() if x.ndim > 1]
    others = [x for x in network.parameters() if x.ndim <= 1]
    groups = [
        {'params': kernels, 'weight_decay': optim.weight_decay},
        {'params': others, 'weight_decay': 0.0},
    ]
    optimizer = torch.optim.AdamW(groups)
    triplet, miner = TripletMarginLoss(margin=MARGIN), BatchHardMiner()
    cross_entropy = nn.CrossEntropyLoss(label_smoothing=config.loss.label_smoothing)

    def train_step(step, batch):
        for group in optimizer.param_groups:
            group['lr'] = float(rate_of(step))
        labels = torch.tensor(batch['label']).long()
        embedding, logits = network(as_torch(batch['image']))
        loss = config.loss.softmax_weight * cross_entropy(logits, labels)
        loss = loss + config.loss.metric_weight * triplet(
            embedding, labels, miner(embedding, labels)
        )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), optim.clip_norm)
        optimizer.step()
        average.update_parameters(network)

    return train_step


def average_of(network, decay):
    """The running mean of weights and statistics that is evaluated, warmed up as ours is."""

    def update(mean, value, count):
        warm = torch.clamp((1 + count) / (10 + count), max=decay)
        return mean.lerp(value, 1 - float(warm)) if mean.is_floating_point() else value

    return torch.optim.swa_utils.AveragedModel(network, avg_fn=update, use_buffers=True)


@torch.inference_mode()
def embed(network, split, config):
    """A split as the network sees it, mirror images averaged if the config says so."""
    network.eval()
    views = (slice(None), slice(None, None, -1)) if config.eval.flip else (slice(None),)
    embeddings, logits = [], []
    for batch in eval_batches(split, config.data, config.eval.batch_size):
        found = [network(as_torch(batch['image'][:, :, view].copy())) for view in views]
        embedding, logit = (torch.stack(x).mean(0) for x in zip(*found, strict=True))
        embeddings.append(nn.functional.normalize(embedding).numpy()[batch['mask']])
        logits.append(logit.numpy()[batch['mask']])
    network.train()
    return EmbeddedSplit(np.concatenate(embeddings), np.concatenate(logits), split.labels)


def count_steps(network, config, split, seconds):
    """As many steps as fit the time, by the rates of some steps at each size of image.

    Takes these steps with the network, and changes the config: both are to be thrown away.
    """
    step, total = make_step(network, average_of(network, 0.0), config, RATE_STEPS), 0.0
    config.train.num_steps = RATE_STEPS
    for is_early, share in ((True, config.data.early_share), (False, 1 - config.data.early_share)):
        config.data.early_share = float(is_early)
        batches = train_batches(split, config)
        step(0, next(batches))
        start = time.perf_counter()
        for count, batch in enumerate(batches, start=1):
            step(count, batch)
        total += share * (time.perf_counter() - start) / (RATE_STEPS - 1)
    return int(seconds / total)


def train_peer(config, seconds, record):
    """Trains for about this time, with `LOOKS` looks at the validation split.

    `record(step, seconds, scores)` is called after each, at the end with the scores of all classifiers.
    """
    train, validation = (
        load_protocol_split(config.data, 'train'),
        load_protocol_split(config.data, 'validation'),
    )
    num_classes = len(train.class_names)
    torch.set_num_threads(os.cpu_count())

    def make_network():
        torch.manual_seed(config.seed)
        return Peer(config, num_classes).to(memory_format=torch.channels_last)

    num_steps = count_steps(make_network(), config.copy_and_resolve_references(), train, seconds)
    print(f'{PEER}: {num_steps} steps in {seconds / 60:.0f} minutes', flush=True)
    config.train.num_steps, network = num_steps, make_network()
    average = average_of(network, config.train.ema_decay)
    train_step = make_step(network, average, config, num_steps)
    looks = {round(num_steps * (i + 1) / LOOKS) for i in range(LOOKS)}
    start = time.perf_counter()
    for step, batch in enumerate(train_batches(train, config), start=1):
        train_step(step - 1, batch)
        if step not in looks:
            continue
        queries = embed(average, validation, config)
        predictions = {'softmax': np.argmax(queries.logits, axis=1)}
        if step == num_steps:
            neighbors = {'num_neighbors': config.eval.num_neighbors, 'seed': config.seed}
            predictions = predict_classes(embed(average, train, config), queries, **neighbors)
        scores = {name: float(np.mean(x == queries.labels)) for name, x in predictions.items()}
        record(step, time.perf_counter() - start, scores)


def looks_of(workdir):
    """(step, seconds since the start, scores) of each look at the validation split, by the run's files.

    The last look is the evaluation.
    """
    start = (workdir / 'config.json').stat().st_mtime
    evaluation = json.loads((workdir / 'evaluation.json').read_text(encoding='utf-8'))
    num_steps, looks = evaluation['run']['steps'], []
    for path in sorted(workdir.glob('events.*')):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                if value.tag == 'validation/softmax_accuracy' and event.step < num_steps:
                    seconds = event.wall_time - start
                    looks.append((event.step, seconds, {'softmax': value.simple_value}))
    scores = {name: x['accuracy'] for name, x in evaluation['classifiers'].items()}
    seconds = (workdir / 'evaluation.json').stat().st_mtime - start
    return [*looks, (num_steps, seconds, scores)]


def draw(rows, path):
    """Accuracy of the softmax head on the validation split against minutes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout='constrained')
    axes = figure.subplots()
    for name, colour in CONTESTANTS.items():
        found = [row for row in rows if row['contestant'] == name]
        for number, seed in enumerate(dict.fromkeys(row['seed'] for row in found)):
            points = [
                (float(row['seconds']) / 60, 100 * float(row['softmax']))
                for row in found
                if row['seed'] == seed
            ]
            label = None if number else name
            axes.plot(*zip(*points, strict=True), 'o-', c=colour, ms=4, label=label)
    axes.set_xlabel('Minutes on 2 cores')
    axes.set_title('PublicTest accuracy of the softmax head (%)', loc='left')
    save(figure, path)


def main():
    """Writes the rows of our run, trains the peer, and draws."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument(
        '--ours', type=Path, required=True, metavar='WORKDIR', help='a finished run'
    )
    parser.add_argument('--data', metavar='FOLDER', help='config.data.dir')
    parser.add_argument('--output', type=Path, default=ROOT / 'experiments', metavar='DIR')
    arguments, overrides = parser.parse_known_args()
    overrides += [f'--config.data.dir={arguments.data}'] if arguments.data else []
    config = apply_overrides(read_config(arguments.ours), overrides)
    results = arguments.output / 'results' / 'peer_pytorch.csv'
    looks = looks_of(arguments.ours)

    def recorder(contestant, software):
        def record(step, seconds, scores):
            what = {'contestant': contestant, 'seed': config.seed, 'step': step}
            append_row(results, {**what, 'seconds': round(seconds, 1), **scores, **software})
            print(f'{contestant}: step {step}, {seconds:.0f} s, {scores}', flush=True)

        return record

    run = json.loads((arguments.ours / 'evaluation.json').read_text(encoding='utf-8'))['run']
    record = recorder(OURS, {key: run[key] for key in ('commit', 'jax', 'python')})
    for look in looks:
        record(*look)
    versions = {x: importlib.metadata.version(x) for x in ('torch', 'pytorch-metric-learning')}
    _, seconds, _ = looks[-1]
    train_peer(config, seconds, recorder(PEER, describe_software() | versions))
    figure = arguments.output / 'figures' / 'peer_pytorch.png'
    figure.parent.mkdir(parents=True, exist_ok=True)
    draw(read_rows(results), figure)


if __name__ == '__main__':
    sys.exit(main())
