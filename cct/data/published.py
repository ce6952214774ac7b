"""The published data sets: files, checksums, classes, and the statistics their images are normalised with.

Checksums are as published with the data, or by torchvision and Keras for it: sha256, or md5 where that is all there is. Those
of the unzipped idx files were computed from the published .gz.
"""

from __future__ import annotations

from dataclasses import dataclass

from .files import Remote


def _names(text):
    return tuple(text.split())


@dataclass(frozen=True)
class IdxSet:
    title: str
    classes: tuple[str, ...]
    mean: float
    std: float
    flip: bool
    folders: tuple[str, ...]  # below a search folder; the first takes downloads
    url: str
    counts: tuple[int, int]  # images in train, test
    gz_sha256: tuple[str, ...]  # of the published .gz, in the order of FILES, which come without .gz
    sha256: tuple[str | None, ...]  # of what is in them


# The four idx files, in the order of the checksums.
FILES = tuple(f"{split}-{kind}-ubyte" for split in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))

# Mean and std of the 28 x 28 training images, pixels in [0, 1].
MNIST = {
    "mnist": IdxSet(
        title="MNIST",
        classes=_names("0 1 2 3 4 5 6 7 8 9"),
        mean=0.1307,
        std=0.3081,
        flip=False,
        folders=("mnist", "MNIST/raw", "mnist/raw", "MNIST", ""),
        url="https://ossci-datasets.s3.amazonaws.com/mnist/",
        counts=(60000, 10000),
        gz_sha256=(
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        ),
        sha256=(
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
    ),
    "fashion_mnist": IdxSet(
        title="Fashion-MNIST",
        classes=("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        mean=0.2860,
        std=0.3530,
        flip=True,
        folders=("fashion_mnist", "FashionMNIST/raw", "fashion_mnist/raw", "FashionMNIST", "fashion-mnist", ""),
        url="https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        counts=(60000, 10000),
        gz_sha256=(
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        ),
        sha256=(
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        ),
    ),
}


@dataclass(frozen=True)
class Form:
    """One published version: files of `folder`, also inside `archive`. Checksums are of the files: sha256 or md5."""

    folder: str
    archive: str
    train: dict[str, str | None]
    test: dict[str, str | None]
    pickled: bool


@dataclass(frozen=True)
class CifarSet:
    title: str
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    counts: tuple[int, int]
    label_bytes: int  # of a binary record; the last one is the label used
    label_key: str  # in the python version
    forms: tuple[Form, Form]
    remote: Remote  # the archive of the first form


# Mean and std as in the official CIFAR script and recipes.
CIFAR = {
    "cifar10": CifarSet(
        title="CIFAR-10",
        classes=_names("airplane automobile bird cat deer dog frog horse ship truck"),
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        counts=(50000, 10000),
        label_bytes=1,
        label_key="labels",
        forms=(
            Form(
                folder="cifar-10-batches-py",
                archive="cifar-10-python.tar.gz",
                train={
                    "data_batch_1": "c99cafc152244af753f735de768cd75f",
                    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
                    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
                    "data_batch_4": "634d18415352ddfa80567beed471001a",
                    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
                },
                test={"test_batch": "40351d587109b95175f43aff81a1287e"},
                pickled=True,
            ),
            Form(
                folder="cifar-10-batches-bin",
                archive="cifar-10-binary.tar.gz",
                train={
                    "data_batch_1.bin": "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
                    "data_batch_2.bin": "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
                    "data_batch_3.bin": "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
                    "data_batch_4.bin": "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
                    "data_batch_5.bin": "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
                },
                test={"test_batch.bin": "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b"},
                pickled=False,
            ),
        ),
        remote=Remote(
            "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
            "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
        ),
    ),
    "cifar100": CifarSet(
        title="CIFAR-100",
        classes=_names(
            """
            apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
            camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup
            dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower
            leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid
            otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray
            road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
            sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
            wardrobe whale willow_tree wolf woman worm
            """
        ),
        mean=(0.5071, 0.4867, 0.4408),
        std=(0.2675, 0.2565, 0.2761),
        counts=(50000, 10000),
        label_bytes=2,
        label_key="fine_labels",
        forms=(
            Form(
                folder="cifar-100-python",
                archive="cifar-100-python.tar.gz",
                train={"train": "16019d7e3df5f24257cddd939b257f8d"},
                test={"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
                pickled=True,
            ),
            Form(
                folder="cifar-100-binary",
                archive="cifar-100-binary.tar.gz",
                train={"train.bin": "f31298fc616915fa142368359df1c4ca2ae984d6915ca468b998a5ec6aeebf29"},
                test={"test.bin": "d8b1e6b7b3bee4020055f0699b111f60b1af1e262aeb93a0b659061746f8224a"},
                pickled=False,
            ),
        ),
        remote=Remote(
            "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
            "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
        ),
    ),
}


@dataclass(frozen=True)
class OtherSet:
    """Files with addresses and md5s; counts: images in train, test; folders: below a search folder, the first downloads."""

    title: str
    classes: int
    remotes: tuple[Remote, ...]
    folders: tuple[str, ...]
    counts: tuple[int, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


_OXFORD = "https://www.robots.ox.ac.uk/~vgg/data/"

# Mean and std as in the official recipe.
FLOWERS = OtherSet(
    title="Flowers-102",
    classes=102,
    remotes=(
        Remote(_OXFORD + "flowers/102/102flowers.tgz", "52808999861908f626f3c1f4e79d11fa"),
        Remote(_OXFORD + "flowers/102/imagelabels.mat", "e0620be6f572b9609742df49c70aed4d"),
        Remote(_OXFORD + "flowers/102/setid.mat", "a5357ecc9cb78c4bef273ce3793fc85c"),
    ),
    folders=("flowers102", "flowers-102", "flower_data"),
    mean=(0.4353, 0.3773, 0.2872),
    std=(0.2966, 0.2455, 0.2698),
)

PETS = OtherSet(
    title="Oxford-IIIT Pet",
    classes=37,
    remotes=(
        Remote(_OXFORD + "pets/data/annotations.tar.gz", "95a8c909bbe2e81eed6a22bccdf3f68f"),
        Remote(_OXFORD + "pets/data/images.tar.gz", "5c4f3ee8e5d25df40f4fd59a7f44e54c"),
    ),
    folders=("pets", "oxford-iiit-pet"),
)

# Mean and std of the training images, pixels in [0, 1].
SVHN = OtherSet(
    title="SVHN",
    classes=10,
    remotes=(
        Remote("http://ufldl.stanford.edu/housenumbers/train_32x32.mat", "e26dedcc434d2e4c54c9b2d4a06d8373"),
        Remote("http://ufldl.stanford.edu/housenumbers/test_32x32.mat", "eb5a983be6a315427106f1b164d9cef3"),
    ),
    folders=("svhn",),
    counts=(73257, 26032),
    mean=(0.4377, 0.4438, 0.4728),
    std=(0.1980, 0.2010, 0.1970),
)
