"""Every key of a run, with its unit and scope. The other configs override some of them.

Any key can be set on the command line: `--config.train.num_steps=500`.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The default config: ResNet-18 on 48 px grey faces, 8 slices, joint loss."""
    config = ConfigDict()

    # Seed of weights, sampling and augmentation. Same seed, same processor and cores: same bits.
    config.seed = 0

    config.data = data = ConfigDict()
    # A data set of this package ('synthetic_faces', 'digits', 'fer2013', 'raf_db', 'affectnet',
    # 'ferplus', 'sfew', 'ck_plus', 'mmi', 'oulu_casia', 'jaffe', 'folder', 'image_list'), or any TFDS
    # name with image and label.
    data.name = 'synthetic_faces'
    # Variant of the set, such as the number of classes; '' for its default. Its builder lists them.
    data.variant = ''
    # Folder of the source files, for sets that are read from files on disk.
    data.dir = 'data'
    # Folder into which data sets are prepared, once.
    data.prepared_dir = 'prepared'
    # Frames taken of each sequence (ck_plus, mmi, oulu_casia): those of the strongest expression.
    data.num_frames = 3
    # Regular expression whose first group (or all) finds the subject in an image's path ('folder', and
    # 'image_list' without a column for subjects).
    data.subject_pattern = ''
    # The csv file of 'image_list': its path, from `dir` or absolute.
    data.list = 'list.csv'
    # The names of its columns. Path and label must be there; what the others mean tells its builder.
    data.columns = columns = ConfigDict()
    for name in ('path', 'label', 'split', 'subject', 'x', 'y', 'w', 'h', 'query', 'gallery'):
        columns[name] = name
    # Names of the classes of 'image_list' in the order of their labels; empty: all in the list, sorted.
    data.class_names = ()
    # Whether the encoded images live in host memory; if not, paths do, and files are read as needed.
    data.in_memory = True
    # Whether images of the train split that are in another split too, byte for byte, are left out of it.
    data.drop_leaks = False
    # Split that is trained on, and that is the gallery of the evaluation; 'train[:33%]' is a third.
    data.train_split = 'train'
    # Split that is watched during training and chooses the best checkpoint; '' for none.
    data.validation_split = 'validation'
    # Share of the train split that is cut off to be the validation split, by subject where subjects are
    # known; 0 for the set's own validation split.
    data.validation_share = 0.0
    # Number of folds by subject into which the train split is cut; -1: one for each subject; 0: none.
    data.folds = 0
    # Fold that is the test split, from 0; the others are trained on. `crossval` runs all.
    data.fold = 0
    # Names of classes that training and validation leave to the test split, which has no others.
    data.heldout_classes = ()
    # Whether images are cut to a square before they are resized: around the face where the set knows its
    # box, else around the middle. If not, they are stretched to a square.
    data.crop = False
    # Margin added to the square on each side, as a share of it; below 0 it cuts in.
    data.crop_margin = 0.0
    # Side in pixels to which images are resized.
    data.image_size = 48
    # Share of the steps, from the first, that see images of another side in pixels: with smaller ones
    # training begins faster. Evaluation always sees image_size.
    data.early_share = 0.0
    data.early_image_size = 32
    # 1 (grey) or 3 (RGB).
    data.channels = 1
    # Subtracted from and divided out of pixel values in [0, 1]; one number, or one a channel.
    data.mean = (0.5,)
    data.std = (0.25,)
    # Global batch size, in images. Must be divisible by the number of devices.
    data.batch_size = 128
    # Images that a device embeds at a time, for batches larger than its memory; 0 for all. Mining and
    # the loss are over the whole batch all the same, for one more pass forward. Divides the images of a
    # device.
    data.micro_batch = 0
    # Faces K of a class in a batch, at least 2, where not all classes fit a batch with K each (P x K
    # sampling). With few classes every class is in every batch, with batch_size / num_classes faces.
    data.samples_per_class = 4
    # How often a class is drawn: 'class' (all equally), 'instance' (as its faces), 'sqrt' (as the root).
    data.sampling = 'class'

    config.augment = augment = ConfigDict()
    # Probability of a horizontal flip.
    augment.flip = 0.5
    # Largest rotation, in degrees.
    augment.rotation = 10.0
    # Largest zoom in or out, as a share: 0.1 zooms by up to 1.1 or 1 / 1.1.
    augment.scale = 0.1
    # Largest shift, as a share of the side.
    augment.shift = 0.08
    # Largest change of all pixel values, of the range [0, 1].
    augment.brightness = 0.1
    # Largest change of contrast, as a share.
    augment.contrast = 0.2
    # Probability that a rectangle is erased, and the largest share of the area that it covers.
    augment.erasing = 0.0
    augment.erasing_area = 0.15

    config.model = model = ConfigDict()
    # 'resnet10', 'resnet18', 'resnet34', 'resnet50', 'mobilenet_v3_small' or 'ir50'.
    model.backbone = 'resnet18'
    # Multiplies the channels of all layers: 64, 128, 256 and 512 in the four stages of a ResNet.
    model.width_factor = 0.5
    # How early maps shrink: 'cifar' to an eighth of the image's side in the end, 'small' (for up to 64
    # px; a quarter of the work) to a sixteenth, 'imagenet' (for 224 px, in a ResNet 7x7 and max-pool) to
    # a 32nd. 'ir50' as published, for 112 px, is 'small', and has no 'imagenet'.
    model.stem = 'small'
    # Weights that the backbone starts from: a file by the names of torchvision (ResNets, MobileNetV3) or
    # face.evoLVe (IR-50), after any prefix (.npz, .pkl with a dict of NumPy arrays, or .pth, .pth.tar or
    # .pt, which take PyTorch); '' for random ones. Most want stem 'imagenet', width_factor 1.0, and the
    # channels, image_size, mean and std in `data` with which they were trained. models/pretrained.py
    # lists what a file does not tell.
    model.pretrained = ''
    # Where BatchNorm takes its statistics from in training: 'batch', the images that are embedded
    # together (all devices' micro-batches); 'device', those of each device by itself, for which none
    # waits for the others, and whose mean is kept; 'running', those that it has, as of pretrained
    # weights, for good: then a split batch has the gradient of the whole one.
    model.batch_norm = 'batch'
    # Size E of the embedding; must be divisible by num_slices.
    model.embedding_size = 256
    # 'batch' standardises each component of the embedding over the batch (BatchNorm without scale and
    # bias), so that slices cannot shrink to one point; 'none' does not.
    model.embedding_norm = 'none'
    # Number of slices S, each with a threshold of its own.
    model.num_slices = 8
    # (Initial) scale of the cosine classifiers' logits, and whether it is learned.
    model.logit_scale = 10.0
    model.learn_logit_scale = True
    # 'float32' or 'bfloat16': type of the backbone's computation. Parameters are float32.
    model.dtype = 'float32'

    config.loss = loss = ConfigDict()
    # Weight of the multi-threshold loss. Far above 1 it collapses on noisy labels.
    loss.metric_weight = 1.0
    # Weight of the softmax cross-entropy of each slice. At 0 hard sets collapse (docs/method.md).
    loss.softmax_weight = 1.0
    # Share of the target that cross-entropy spreads over all classes.
    loss.label_smoothing = 0.0
    # Weights of the classes in cross-entropy: 'none', 'inverse' or 'sqrt' (of their number of faces).
    loss.class_weights = 'none'
    # 'euclidean' or 'squared_euclidean': distance between unit slices, and unit of the thresholds.
    loss.distance = 'euclidean'
    # Dual triplet loss, or the ordinary one.
    loss.dual = True
    # Of each anchor, in the global batch. 'hard': its hardest positive and negative; 'semihard': the
    # hardest negative that is farther than the positive; 'quantile': pairs of rank `quantile` from the
    # hardest, for noisy labels; 'all': every triplet.
    loss.mining = 'hard'
    # Rank of the mined pairs for mining 'quantile', from 0 (the hardest) to 1 (the easiest).
    loss.quantile = 0.25
    # Mean of a slice's triplets: 'mean' over all that are mined; 'active_mean' over those that violate
    # their threshold, so that a slice that keeps its threshold mostly learns no slower than the others.
    loss.reduction = 'mean'
    # 0 for the hinge [x]_+; above 0 for softness * log(1 + exp(x / softness)), in units of the distance.
    loss.softness = 0.0
    # Embeddings of earlier batches that may be mined too (cross-batch memory), at least batch_size; 0
    # for none. They are kept from step memory_start on: at first a network changes too fast.
    loss.memory_size = 0
    loss.memory_start = 1000
    # One threshold a slice; empty: midpoints of num_slices equal bins of the valid range.
    loss.thresholds = ()

    config.optim = optim = ConfigDict()
    # 'adamw' or 'sgd' (Nesterov).
    optim.name = 'adamw'
    # Peak learning rate.
    optim.learning_rate = 1e-3
    # 'cosine' (linear warm-up, then a cosine down to 0) or 'constant' (after the warm-up).
    optim.schedule = 'cosine'
    # Share of all steps during which the learning rate rises from 0.
    optim.warmup = 0.2
    # Decoupled for adamw, added to the gradient for sgd; on kernels only.
    optim.weight_decay = 0.01
    # Of sgd.
    optim.momentum = 0.9
    # Largest global norm of the gradient; 0 for no limit.
    optim.clip_norm = 5.0

    config.train = train = ConfigDict()
    # Number of optimizer steps.
    train.num_steps = 1000
    # Decay of the running mean of weights and BatchNorm statistics that is evaluated; 0 for none.
    train.ema_decay = 0.0
    # Steps from one line of metrics (means over these steps) to the next.
    train.log_every = 20
    # Steps from one checkpoint to the next; each is preceded by a look at the validation split.
    train.checkpoint_every = 200
    # Number of latest checkpoints kept, besides the best one.
    train.keep_checkpoints = 2
    # What the best checkpoint is best at on the validation split: 'softmax_accuracy', 'knn_accuracy', or
    # 'map_at_r' (retrieval, also of classes that are not trained on).
    train.best_metric = 'softmax_accuracy'
    # Steps during which a slice must lie in one point before the collapse alarm goes off.
    train.collapse_steps = 200

    config.eval = evaluation = ConfigDict()
    # Split that is evaluated at the end of training.
    evaluation.split = 'test'
    # 'best' or 'latest' checkpoint.
    evaluation.checkpoint = 'best'
    # Images embedded at a time, over this host's devices.
    evaluation.batch_size = 256
    # Whether an image and its mirror image are embedded and averaged (twice the time).
    evaluation.flip = False
    # Neighbours k of the k-nearest-neighbour classifier.
    evaluation.num_neighbors = 15
    # Faces of the train split that kNN searches while training goes on (all of them at the end).
    evaluation.gallery_size = 2000
    return config.lock()
