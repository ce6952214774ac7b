"""Checkpoints: both formats, fitting to other sizes and classes, released weights, and files that are broken or hostile."""

import argparse
import errno
import hashlib
import json
import logging
import os
import pickle
import zipfile

import pytest
import torch

import cct.models as models
from cct.models import CheckpointError, create_model, pretrained
from cct.models.checkpoints import load_checkpoint, load_weights, save_checkpoint, write_atomically
from cct.models.positional import resize, sine_table

SMALL = {"fused": False, "img_size": 8, "embedding_dim": 8, "num_layers": 2, "num_heads": 2, "mlp_ratio": 1, "num_classes": 3}
EMBEDDING, BIAS = "classifier.positional_emb", "tokenizer.conv_layers.0.0.bias"


def cct(seed=0, **kwargs):
    torch.manual_seed(seed)
    return models.CCT(**SMALL | {"kernel_size": 3} | kwargs).eval()


def vit(seed=0, **kwargs):
    torch.manual_seed(seed)
    return models.ViTLite(**SMALL | {"kernel_size": 2} | kwargs).eval()


def words(seed=0, **kwargs):
    torch.manual_seed(seed)
    small = {"vocab_size": 9, "seq_len": 12, "kernel_size": 2, "word_embedding_dim": 6, "embedding_dim": 8, "fused": False}
    return models.TextCCT(**small | kwargs).eval()


def same(a, b):
    assert list(a) == list(b)
    assert all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CCT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


# ---- our own format


def test_safetensors_round_trip(tmp_path):
    model, path = cct(), tmp_path / "best.safetensors"
    config = {"model": model.config, "preprocessing": {"mean": [0.5]}, "classes": ["äpfel", "b"], "metrics": {"top1": 97.5}}
    save_checkpoint(path, model.state_dict(), config)
    state_dict, stored = load_checkpoint(path)
    same({k: state_dict[k] for k in model.state_dict()}, model.state_dict())
    assert stored == config == json.loads((tmp_path / "best.json").read_text(encoding="utf-8"))
    assert sorted(os.listdir(tmp_path)) == ["best.json", "best.safetensors"]
    again = create_model(
        "CCT", pretrained=path, fused=False, **{k: v for k, v in model.config["kwargs"].items() if k != "num_classes"}
    )
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(again.eval()(x), model(x))


def test_a_checkpoint_written_elsewhere_has_no_config(tmp_path):
    from safetensors.torch import save_file

    save_file(cct().state_dict(), tmp_path / "a.safetensors")
    assert load_checkpoint(tmp_path / "a.safetensors")[1] is None


def test_failed_writes_leave_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def write(temporary):
        temporary.write_text("half of the ne")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, write)
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file"]


def test_the_folder_and_file_reach_the_disk_before_and_after_the_replacement(tmp_path, monkeypatch):
    events = []
    real_fsync, real_replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: events.append("fsync") or real_fsync(fd))
    monkeypatch.setattr(os, "replace", lambda a, b: events.append("replace") or real_replace(a, b))
    write_atomically(tmp_path / "file", lambda p: p.write_text("new"))
    assert events == ["fsync", "replace", "fsync"]


# ---- official files


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("zipped", [True, False])
def test_official_files(tmp_path, zipped, legacy):
    state_dict, path = cct().state_dict(), tmp_path / "weights.pth"
    torch.save(state_dict, path, _use_new_zipfile_serialization=not legacy)
    if zipped:
        with zipfile.ZipFile(tmp_path / "weights.pth.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.write(path, "folder/weights.pth")
            archive.writestr("__MACOSX/folder/._weights.pth", b"resource fork")
        path = tmp_path / "weights.pth.zip"
    loaded, config = load_checkpoint(path)
    same(loaded, state_dict)
    assert config is None


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_files_of_training_scripts(tmp_path, key):
    """A wrapper around the state dict, flags beside it, names with the prefix of data-parallel training; averages first."""
    state_dict, average = cct().state_dict(), cct(1).state_dict()
    content = {key: {f"module.{k}": v for k, v in state_dict.items()}, "epoch": 3, "args": argparse.Namespace(lr=0.1)}
    torch.save(content, tmp_path / "a.pth")
    same(load_checkpoint(tmp_path / "a.pth")[0], state_dict)
    torch.save(content | {"state_dict_ema": average}, tmp_path / "b.pth")
    same(load_checkpoint(tmp_path / "b.pth")[0], average)


# ---- fitting


def test_other_classes_leave_a_fresh_head(caplog, tmp_path):
    model = cct()
    torch.save(model.state_dict(), tmp_path / "a.pth")
    other = create_model("CCT", pretrained=tmp_path / "a.pth", **{**model.config["kwargs"], "num_classes": 5})
    record = caplog.records[-1].message
    assert record == f"{tmp_path}/a.pth: the checkpoint has a head for 3 classes: the head for 5 classes is new and untrained"
    assert other.classifier.fc.weight.shape == (5, 8)
    assert torch.equal(other.classifier.norm.weight, model.classifier.norm.weight)
    assert load_weights(cct(num_classes=0), model.state_dict()) == ["the head for 3 classes is dropped, the model has none"]
    (line,) = load_weights(model, cct(num_classes=0).state_dict())
    assert line == "the checkpoint has no head: the head for 3 classes is new and untrained"


def test_size_and_classes_are_reported_in_one_line(caplog, tmp_path):
    torch.save(models.cct_2_3x2().state_dict(), tmp_path / "a.pth")
    caplog.clear()
    model = create_model("cct_2_3x2", pretrained=tmp_path / "a.pth", num_classes=4, img_size=48, fused=False)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and record.message.count("\n") == 0
    assert (
        "positional embedding resized from 8 x 8 to 12 x 12 tokens; the checkpoint has a head for 10 classes" in record.message
    )
    assert model(torch.zeros(1, 3, 48, 48)).shape == (1, 4)


def test_what_the_caller_leaves_open_comes_from_the_checkpoint(tmp_path, caplog):
    model = models.cct_2_3x2(num_classes=4, img_size=(16, 24))
    save_checkpoint(tmp_path / "a.safetensors", model.state_dict(), {"model": model.config})
    caplog.clear()
    again = create_model("cct_2_3x2", pretrained=tmp_path / "a.safetensors")
    assert (again.num_classes, again.img_size) == (4, (16, 24)) and not caplog.records
    same(again.state_dict(), model.state_dict())
    assert create_model("cct_2_3x2", pretrained=tmp_path / "a.safetensors", img_size=32).img_size == (32, 32)


@pytest.mark.parametrize("build", [cct, vit])
def test_embedding_resized(build):
    model, other = build(), build(1, img_size=16)
    old, cls = model.state_dict(), int(build is vit)
    (line,) = load_weights(other, old)
    assert line == "positional embedding resized from 4 x 4 to 8 x 8 tokens"
    assert torch.equal(other.classifier.positional_emb, resize(old[EMBEDDING], (4, 4), (8, 8), cls))
    assert torch.equal(other.classifier.positional_emb[:, :cls], old[EMBEDDING][:, :cls])
    assert other.classifier.positional_emb.requires_grad


def test_the_configuration_tells_the_grid():
    wide = cct(img_size=(8, 32))  # 4 x 16 tokens, as many as 8 x 8
    square = cct(1, img_size=16)
    assert load_weights(square, wide.state_dict()) == []  # nothing tells; the count fits
    (line,) = load_weights(square, wide.state_dict(), {"model": wide.config})
    assert line == "positional embedding resized from 4 x 16 to 8 x 8 tokens"
    expected = resize(wide.classifier.positional_emb.detach(), (4, 16), (8, 8))
    assert torch.equal(square.classifier.positional_emb, expected)


def test_without_configuration_a_square_or_the_aspect_of_the_model():
    assert load_weights(cct(img_size=(8, 16)), cct(1).state_dict()) == [
        "positional embedding resized from 4 x 4 to 4 x 8 tokens"
    ]  # fmt: skip
    assert load_weights(cct(img_size=(16, 24)), cct(1, img_size=(8, 12)).state_dict()) == [
        "positional embedding resized from 4 x 6 to 8 x 12 tokens"
    ]  # fmt: skip
    with pytest.raises(CheckpointError, match=r"has 24 grid rows, neither a square nor 4 : 4.*configuration"):
        load_weights(cct(), cct(1, img_size=(8, 12)).state_dict())


def test_sine_tables_are_recomputed_and_learned_ones_resized():
    """The official `_sine` constructors trained a learnable table: such a file is recognised and resized."""
    sine = cct(positional_embedding="sine")
    other = cct(1, positional_embedding="sine", img_size=16)
    assert load_weights(other, sine.state_dict()) == ["sine positional embedding recomputed from 4 x 4 to 8 x 8 tokens"]
    assert torch.equal(other.classifier.positional_emb, sine_table(64, 8))
    learned = cct().state_dict()
    assert load_weights(other, learned) == ["positional embedding resized from 4 x 4 to 8 x 8 tokens"]
    assert torch.equal(other.classifier.positional_emb, resize(learned[EMBEDDING], (4, 4), (8, 8)))
    assert load_weights(sine, learned) == [] and torch.equal(sine.classifier.positional_emb, learned[EMBEDDING])


def test_text_tables_with_and_without_the_unused_row():
    model, other = words(positional_embedding="learnable"), words(1, positional_embedding="learnable")
    full = model.state_dict()
    assert full[EMBEDDING].shape == (1, 8, 8)
    assert load_weights(other, full) == []
    short = full | {EMBEDDING: full[EMBEDDING][:, 1:]}
    assert load_weights(other, short) == []
    ids = torch.randint(0, 9, (2, 12))
    assert torch.equal(other(ids), model(ids))
    shorter = words(1, positional_embedding="learnable", seq_len=6)
    assert load_weights(shorter, full) == ["positional embedding cut from 8 to 5 rows"]
    assert torch.equal(shorter(ids[:, :6]), model(ids[:, :6]))
    with pytest.raises(CheckpointError, match="has 5 rows, the model 8; build it with a smaller seq_len"):
        load_weights(model, shorter.state_dict())
    assert load_weights(words(), words(1, seq_len=6).state_dict()) == ["sine positional embedding recomputed from 5 to 8 rows"]


def test_missing_patch_bias_is_zero():
    model, state_dict = vit(), vit(1).state_dict()
    del state_dict[BIAS]
    assert load_weights(model, state_dict) == ["the bias of the patch convolution is missing, zeros are taken"]
    assert (model.tokenizer.convs[0].bias == 0).all()


def test_weights_of_another_model():
    model = cct()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(
        CheckpointError, match=r"another model \(1 missing: classifier.attention_pool.*1 left over: classifier.cls"
    ):
        weights = dict(before)
        weights["classifier.cls"] = weights.pop("classifier.attention_pool.weight")
        load_weights(model, weights)
    with pytest.raises(
        CheckpointError, match=r"7 of another shape: classifier.blocks.0.linear1.weight has shape \(16, 8\), .*\.\.\."
    ):
        load_weights(model, cct(1, mlp_ratio=2).state_dict() | {"classifier.norm.weight": torch.ones(9)})
    with pytest.raises(CheckpointError, match="its name and positional_embedding"):
        load_weights(model, cct(positional_embedding="none").state_dict())
    for scalar in ("classifier.fc.weight", EMBEDDING):
        with pytest.raises(CheckpointError, match="of another"):
            load_weights(model, before | {scalar: torch.tensor(1.0)})
    same(model.state_dict(), before)


def test_errors_of_create_model_name_the_file(tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"a\.pth: the weights are of another model"):
        create_model("cct_2_3x2", pretrained=tmp_path / "a.pth")


# ---- broken and hostile files


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("hostile-was-here",)


@pytest.mark.parametrize("legacy", [True, False])
def test_code_in_pickles_does_not_run(tmp_path, monkeypatch, legacy):
    monkeypatch.chdir(tmp_path)
    torch.save({"weights": Hostile()}, "a.pth", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match=r"a.pth: holds \S+ beside tensors, which is not read.*torch.save"):
        load_checkpoint("a.pth")
    torch.save(cct(), "model.pth")
    with pytest.raises(CheckpointError, match=r"holds cct\.models\.vision\.CCT beside tensors"):
        load_checkpoint("model.pth")
    with open("plain.pkl", "wb") as file:
        pickle.dump({"weights": Hostile()}, file, protocol=2)
    with pytest.raises(CheckpointError, match=r"plain\.pkl"):
        load_checkpoint("plain.pkl")
    assert not os.path.exists("hostile-was-here")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("kind", ["pth", "legacy", "zip", "safetensors"])
@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_truncated_files(tmp_path, kind, keep):
    path = tmp_path / f"a.{'safetensors' if kind == 'safetensors' else 'pth'}"
    if kind == "safetensors":
        save_checkpoint(path, cct().state_dict(), {})
    else:
        torch.save(cct().state_dict(), path, _use_new_zipfile_serialization=kind != "legacy")
    if kind == "zip":
        with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
            archive.write(path, "a.pth")
        path = tmp_path / "b.zip"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole))])
    with pytest.raises(CheckpointError, match=rf"{path.name}: (is empty|is truncated|is a damaged).*copy or download it again"):
        load_checkpoint(path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_damaged_and_foreign_files(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    generator = torch.Generator().manual_seed(0)
    noise = bytes(torch.randint(0, 256, (4000,), generator=generator, dtype=torch.uint8).tolist())
    for content in (b"<!DOCTYPE html><html><body>Not found</body></html>", noise, bytes(4000), b"{}", b"12345678{broken json"):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=path.name):
            load_checkpoint(path)


def test_damage_inside_an_archive(tmp_path):
    path = tmp_path / "a.zip"
    torch.save(cct().state_dict(), tmp_path / "a.pth")
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(tmp_path / "a.pth", "a.pth")
    content = bytearray(path.read_bytes())
    content[2000:3000] = bytes(1000)
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"a\.zip: is a damaged archive"):
        load_checkpoint(path)


def test_other_contents_are_named(tmp_path):
    def refused(match, content=None, name="a.pth"):
        if content is not None:
            torch.save(content, tmp_path / name)
        with pytest.raises(CheckpointError, match=match):
            load_checkpoint(tmp_path / name)

    refused("a.pth: holds a list; expected a state dict", [1, 2])
    refused("a.pth: holds a dict; expected a state dict", {})
    refused("a.pth: holds a dict; expected a state dict", {"epoch": 3})
    refused("none.pth: does not exist", name="none.pth")
    (tmp_path / "folder").mkdir()
    refused("folder: is a folder, not a file", name="folder")
    for members in ([], ["readme.txt"], ["a.pth", "b.pth"]):
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            for member in members:
                archive.writestr(member, b"x")
        refused(f"a.zip: holds {', '.join(members) or 'nothing'}; expected an archive with exactly one", name="a.zip")


def test_configurations_that_are_none(tmp_path):
    from safetensors.torch import save_file

    for text in ("[1]", '{"model": 3}', "{broken"):
        save_file({"a": torch.ones(1)}, tmp_path / "a.safetensors", {"cct": text})
        with pytest.raises(CheckpointError, match=r"a\.safetensors"):
            load_checkpoint(tmp_path / "a.safetensors")


# ---- released weights


class Site:
    """The official site, for `torch.hub.download_url_to_file`."""

    def __init__(self, monkeypatch, content):
        self.urls, self.content = [], content
        monkeypatch.setattr(torch.hub, "download_url_to_file", self.download)

    def download(self, url, path, progress):
        self.urls.append(url)
        if isinstance(self.content, Exception):
            raise self.content
        with open(path, "wb") as file:
            file.write(self.content)


FILE = "cct_7_3x1_32_cifar10_300epochs.pth"


@pytest.fixture
def released(tmp_path):
    torch.manual_seed(0)
    model = models.cct_7_3x1_32()
    torch.save(model.state_dict(), tmp_path / FILE)
    return model, (tmp_path / FILE).read_bytes()


def test_download_once_and_record_the_digest(cache, monkeypatch, released):
    model, content = released
    site = Site(monkeypatch, content)
    for weights in (True, "cct_7_3x1_32", FILE, FILE.removesuffix(".pth")):
        same(create_model("cct_7_3x1_32", pretrained=weights).state_dict(), model.state_dict())
    assert models.cct_7_3x1_32(True, False).num_classes == 10
    assert site.urls == [pretrained.URL + FILE]
    record = (cache / f"{FILE}.sha256").read_text()
    assert record == f"{hashlib.sha256(content).hexdigest()}  {FILE}\n"
    assert sorted(os.listdir(cache)) == [FILE, f"{FILE}.sha256"]


def test_a_digest_that_was_cut_off_is_recorded_anew(cache, monkeypatch, released):
    Site(monkeypatch, released[1])
    record = cache / f"{FILE}.sha256"
    create_model("cct_7_3x1_32", pretrained=True)
    whole = record.read_text()
    record.write_text("")
    create_model("cct_7_3x1_32", pretrained=True)
    assert record.read_text() == whole
    record.unlink()

    def full(path, write):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pretrained, "write_atomically", full)
    with pytest.raises(CheckpointError, match=r"sha256: cannot be written \(No space left on device\); make room"):
        create_model("cct_7_3x1_32", pretrained=True)


def test_a_file_put_there_by_hand_is_used(cache, monkeypatch, released):
    site = Site(monkeypatch, OSError("offline"))
    cache.mkdir()
    (cache / FILE).write_bytes(released[1])
    same(create_model("cct_7_3x1_32", pretrained=True).state_dict(), released[0].state_dict())
    assert site.urls == []


def test_a_file_that_changed_is_refused(cache, monkeypatch, released):
    Site(monkeypatch, released[1])
    create_model("cct_7_3x1_32", pretrained=True)
    with open(cache / FILE, "r+b") as file:
        file.seek(100_000)
        file.write(b"damage")
    with pytest.raises(CheckpointError, match=rf"{FILE}: sha256 is [0-9a-f]+; expected [0-9a-f]+. Delete it and {FILE}.sha256"):
        create_model("cct_7_3x1_32", pretrained=True)


def test_a_published_digest_is_verified(cache, monkeypatch, released):
    Site(monkeypatch, released[1])
    wrong = pretrained.Released(FILE, "cifar10", sha256="0" * 64)
    with pytest.raises(CheckpointError, match=f"expected {'0' * 64}"):
        pretrained.fetch(wrong)
    right = pretrained.Released(FILE, "cifar10", sha256=hashlib.sha256(released[1]).hexdigest())
    assert pretrained.fetch(right) == cache / FILE


@pytest.mark.parametrize("content", [OSError("Name or service not known"), b"<!DOCTYPE html>moved"], ids=["offline", "moved"])
def test_no_download_says_which_file_to_put_where(cache, monkeypatch, content):
    Site(monkeypatch, content)
    with pytest.raises(CheckpointError, match=rf"{FILE}: cannot be downloaded from https.*put it at {cache / FILE}, or pass"):
        create_model("cct_7_3x1_32", pretrained=True)
    assert os.listdir(cache) == []


def test_names_without_released_weights():
    with pytest.raises(CheckpointError, match=r"vit_7_4_32: no weights were released under this name.*cct_7_3x1_32"):
        create_model("vit_7_4_32", pretrained=True)
    with pytest.raises(CheckpointError, match=r"cct_7_3x1_33: does not exist.*did you mean 'cct_7_3x1_32'"):
        create_model("cct_7_3x1_32", pretrained="cct_7_3x1_33")
    with pytest.raises(ValueError, match="pretrained is 3; expected True, False, a path"):
        create_model("cct_7_3x1_32", pretrained=3)


def test_every_released_file_belongs_to_a_model_of_its_classes():
    classes = {"cifar10": 10, "cifar100": 100, "flowers102": 102, "imagenet": 1000}
    for name, file in pretrained.RELEASED.items():
        assert models.registry.MODELS[name].kwargs["num_classes"] == classes[file.data]
        assert file.file.startswith(name.split("_32")[0].split("_224")[0].split("_384")[0])


def test_the_cache_is_in_the_home_folder_by_default(monkeypatch, tmp_path):
    monkeypatch.delenv("CCT_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert pretrained.cache_folder() == tmp_path / ".cache" / "cct"
