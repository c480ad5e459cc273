"""All settings of a run, with units and valid values. The other configs override some of them.

Any key can be set on the command line: `--config.train.num_steps=500`.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the default config: ResNet-18 on 48 px grey faces, 8 slices, joint loss."""
    config = ConfigDict()

    # Seed of weights, sampling and augmentation. The same seed gives the same bits on the same processor
    # with the same number of cores.
    config.seed = 0

    config.data = data = ConfigDict()
    # A data set of this package ('synthetic_faces', 'digits', 'fer2013', 'raf_db', 'affectnet',
    # 'ferplus', 'sfew', 'ck_plus', 'mmi', 'oulu_casia', 'jaffe', 'folder', 'image_list'), or any TFDS
    # data set with image and label.
    data.name = 'synthetic_faces'
    # Variant of the data set, such as the number of classes; '' for its default. The docstring of the
    # data set lists its variants.
    data.variant = ''
    # Folder of the source files, for data sets that are read from files on disk.
    data.dir = 'data'
    # Folder in which data sets are prepared, once.
    data.prepared_dir = 'prepared'
    # Number of frames that are taken from each sequence (ck_plus, mmi, oulu_casia): those with the
    # strongest expression.
    data.num_frames = 3
    # Regular expression that finds the subject in an image's path: its first group, or the whole match
    # (for 'folder', and for 'image_list' without a column for subjects).
    data.subject_pattern = ''
    # Path of the csv file of 'image_list', absolute or relative to `dir`.
    data.list = 'list.csv'
    # Names of the columns of the csv file. Path and label are required. The docstring of
    # data/sets/image_list.py explains the other columns.
    data.columns = columns = ConfigDict()
    for name in ('path', 'label', 'split', 'subject', 'x', 'y', 'w', 'h', 'query', 'gallery'):
        columns[name] = name
    # Names of the classes of 'image_list' in the order of their labels; empty for all classes in the
    # list, sorted.
    data.class_names = ()
    # Whether the encoded images are kept in host memory. If not, files are read when they are needed.
    data.in_memory = True
    # Whether images of the train split that are also in another split, byte for byte, are left out of
    # the train split.
    data.drop_leaks = False
    # Split for training, which is also the gallery of the evaluation; 'train[:33%]' is a third of it.
    data.train_split = 'train'
    # Split that is evaluated during training and chooses the best checkpoint; '' for none.
    data.validation_split = 'validation'
    # Share of the train split that becomes the validation split, divided by subject if subjects are
    # known; 0 for the data set's own validation split.
    data.validation_share = 0.0
    # Number of folds by subject into which the train split is divided; -1 for one fold for each subject,
    # 0 for no folds.
    data.folds = 0
    # Index of the fold that is the test split, from 0; the other folds are for training. `crossval` runs
    # all folds.
    data.fold = 0
    # Names of classes that only the test split has; the test split then has no other classes.
    data.heldout_classes = ()
    # Whether images are cropped to a square before they are resized: around the face if the data set has
    # its box, otherwise around the middle. If False, images are stretched to a square.
    data.crop = False
    # Margin added to the square on each side, as a share of its side; below 0 the square gets smaller.
    data.crop_margin = 0.0
    # Side in pixels to which images are resized.
    data.image_size = 48
    # Share of the steps, from the first, that use images of side early_image_size in pixels. Training
    # begins faster with smaller images. Evaluation always uses image_size.
    data.early_share = 0.0
    data.early_image_size = 32
    # 1 (grey) or 3 (RGB).
    data.channels = 1
    # Pixel values in [0, 1] become (value - mean) / std; one number, or one for each channel.
    data.mean = (0.5,)
    data.std = (0.25,)
    # Global batch size, in images. Must be divisible by the number of devices.
    data.batch_size = 128
    # Number of images that a device embeds at a time, for batches that do not fit its memory; 0 for all.
    # Mining and the loss still use the whole batch, which costs one more forward pass. Must divide the
    # number of images of a device.
    data.micro_batch = 0
    # Number of faces K of a class in a batch, at least 2 (P x K sampling). It applies if a batch cannot
    # hold all classes with K faces each. Otherwise every class is in every batch, with
    # batch_size / num_classes faces.
    data.samples_per_class = 4
    # How often a class is drawn: 'class' (all equally), 'instance' (in proportion to its number of
    # faces) or 'sqrt' (in proportion to the square root of that number).
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
    # Largest change of brightness, added to all pixel values, which are in [0, 1].
    augment.brightness = 0.1
    # Largest change of contrast, as a share.
    augment.contrast = 0.2
    # Probability that a rectangle is erased, and the largest share of the area that it covers.
    augment.erasing = 0.0
    augment.erasing_area = 0.15

    config.model = model = ConfigDict()
    # 'resnet10', 'resnet18', 'resnet34', 'resnet50', 'mobilenet_v3_small', 'ir50' or 'dlib_resnet'.
    model.backbone = 'resnet18'
    # Multiplies the channels of all layers: 64, 128, 256 and 512 in the four stages of a ResNet.
    model.width_factor = 0.5
    # How early feature maps shrink. The last map has an eighth of the image's side with 'cifar', a
    # sixteenth with 'small' (for up to 64 px; a quarter of the work), and a 32nd with 'imagenet' (for
    # 224 px; 7x7 convolution and max-pool in a ResNet). The published 'ir50', for 112 px, is 'small';
    # it has no 'imagenet'. 'dlib_resnet' has a stem of its own, whatever is set here.
    model.stem = 'small'
    # File of weights that the backbone starts from; '' for random weights; 'dlib' for the file of the
    # package face_recognition_models. The weights must have the names of torchvision (ResNets,
    # MobileNetV3) or face.evoLVe (IR-50), after any prefix. The file may be .npz, .pkl with a dict of
    # NumPy arrays, dlib's .dat, or .pth, .pth.tar and .pt, which need PyTorch.
    # models/pretrained.py lists what a file does not say about its network.
    model.pretrained = ''
    # Family of the weights: 'torchvision', 'face_evolve', 'dlib', or 'dlib_grey' for images of one
    # channel. On the command line, it sets image_size, channels, mean and std in `data`, and the
    # network, as these weights need them. configs/_families.py has the values; other arguments change
    # them again.
    model.pretrained_family = ''
    # Source of BatchNorm's statistics in training. 'batch': the images that are embedded together, in
    # the micro-batches of all devices. 'device': the images of each device alone, so that no device
    # waits for the others; the mean over devices is kept. 'running': the statistics that the weights
    # have, for example from pretraining; they never change, so micro-batches give the gradient of the
    # whole batch. 'recalibrated': as 'batch', but before the first step the statistics are measured on
    # training faces, and scale and bias are rewritten so that the network computes what it did. It is
    # for weights of another kind of image, or whose BatchNorm had become a scale and shift.
    model.batch_norm = 'batch'
    # Size E of the embedding; must be divisible by num_slices.
    model.embedding_size = 256
    # 'batch' standardizes each component of the embedding over the batch (BatchNorm without scale and
    # bias), so that slices cannot collapse to one point. 'none' does not standardize.
    model.embedding_norm = 'none'
    # Number of slices S. Each slice has its own threshold.
    model.num_slices = 8
    # Scale of the cosine classifiers' logits, and whether it is learned, starting from this value.
    model.logit_scale = 10.0
    model.learn_logit_scale = True
    # 'float32' or 'bfloat16': type of the backbone's computation. Parameters are float32.
    model.dtype = 'float32'

    config.loss = loss = ConfigDict()
    # Weight of the multi-threshold loss. With a weight far above 1, slices collapse on noisy labels.
    loss.metric_weight = 1.0
    # Weight of the softmax cross-entropy of each slice. At 0, slices collapse on hard data sets
    # (docs/method.md).
    loss.softmax_weight = 1.0
    # Share of the target that cross-entropy spreads over all classes.
    loss.label_smoothing = 0.0
    # Weights of the classes in cross-entropy: 'none', 'inverse' (of their number of faces) or 'sqrt'
    # (its square root).
    loss.class_weights = 'none'
    # 'euclidean' or 'squared_euclidean': distance between unit slices, and unit of the thresholds.
    loss.distance = 'euclidean'
    # Whether the loss is the dual triplet loss; if not, it is the ordinary one.
    loss.dual = True
    # Triplets of each anchor in the global batch. 'hard': its hardest positive and hardest negative.
    # 'semihard': the hardest negative that is farther than the positive. 'quantile': pairs of rank
    # `quantile` from the hardest, for noisy labels. 'all': every triplet.
    loss.mining = 'hard'
    # Rank of the mined pairs for mining 'quantile', from 0 (the hardest) to 1 (the easiest).
    loss.quantile = 0.25
    # Mean over the triplets of a slice: 'mean' over all mined triplets; 'active_mean' over those that
    # violate the threshold, so that a slice with few violations learns as fast as the others.
    loss.reduction = 'mean'
    # 0 for the hinge [x]_+; above 0 for softness * log(1 + exp(x / softness)), in units of the distance.
    loss.softness = 0.0
    # Number of embeddings of earlier batches that are also mined (cross-batch memory), at least
    # batch_size; 0 for none. They are kept from step memory_start on, because a network changes too fast
    # at first.
    loss.memory_size = 0
    loss.memory_start = 1000
    # One threshold for each slice; empty for the midpoints of num_slices equal bins of the valid range.
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
    # Weight decay of kernels only: decoupled for adamw, added to the gradient for sgd.
    optim.weight_decay = 0.01
    # Momentum of sgd.
    optim.momentum = 0.9
    # Largest global norm of the gradient; 0 for no limit.
    optim.clip_norm = 5.0
    # Regular expression that finds, by their paths, the parameters that do not change, such as
    # '^backbone/(Conv_0|BatchNorm_0|Block_[0-2])/'; '' for none. No gradient is computed for them, so a
    # step takes less time if they are the first layers. Statistics of BatchNorm are not parameters.
    optim.frozen = ''

    config.train = train = ConfigDict()
    # Number of optimizer steps.
    train.num_steps = 1000
    # Decay of the running mean of weights and BatchNorm statistics. The mean is evaluated; 0 for none.
    train.ema_decay = 0.0
    # Number of steps between two lines of metrics, which are means over these steps.
    train.log_every = 20
    # Number of steps between two checkpoints. A validation run precedes each checkpoint.
    train.checkpoint_every = 200
    # Number of latest checkpoints that are kept, besides the best one.
    train.keep_checkpoints = 2
    # Metric on the validation split that chooses the best checkpoint: 'softmax_accuracy', 'knn_accuracy'
    # or 'map_at_r' (retrieval, also of classes that training does not have).
    train.best_metric = 'softmax_accuracy'
    # Number of steps that a slice must be collapsed to one point before the alarm.
    train.collapse_steps = 200
    # How the step is mapped over devices: 'pmap' or 'shard_map', with the same results. A run may start
    # with the one and resume with the other.
    train.mapping = 'pmap'

    config.eval = evaluation = ConfigDict()
    # Split that is evaluated at the end of training.
    evaluation.split = 'test'
    # 'best' or 'latest' checkpoint.
    evaluation.checkpoint = 'best'
    # Number of images that are embedded at a time, over all devices of this host.
    evaluation.batch_size = 256
    # Whether an image and its mirror image are embedded and averaged (twice the time).
    evaluation.flip = False
    # Neighbours k of the k-nearest-neighbour classifier.
    evaluation.num_neighbors = 15
    # Number of faces of the train split that kNN searches during training. The final evaluation searches
    # all of them.
    evaluation.gallery_size = 2000
    return config.lock()
