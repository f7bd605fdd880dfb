# SPDX-License-Identifier: GPL-3.0-or-later
"""The latent cache: right values, encoded once, rebuilt when damaged."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from safegen_core.atomic import atomic_save_safetensors  # noqa: E402
from safegen_core.errors import DataError, FileError  # noqa: E402
from safegen_core.storage import Weights  # noqa: E402
from safegen_core.train import config, latents  # noqa: E402
from safegen_core.train.data import read_dataset  # noqa: E402
from safegen_core.train.latents import LatentCache, Posterior, vae_digest  # noqa: E402


@pytest.fixture
def vae(base_folder):
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(base_folder / "vae").eval()
    vae.encoded = 0
    encode = vae.encode

    def counted(images, *args, **kwargs):
        vae.encoded += len(images)
        return encode(images, *args, **kwargs)

    vae.encode = counted
    return vae


@pytest.fixture
def dataset(pictures):
    return read_dataset(config.Data(folder=str(pictures), block=4, regions="boxes"), 8, 2)


def filled(vae, dataset, folder) -> LatentCache:
    cache = LatentCache(vae, 8, folder)
    cache.fill(dataset.pictures())
    return cache


def test_posterior_is_the_scaled_posterior_of_the_vae(vae, dataset, tmp_path):
    found = filled(vae, dataset, tmp_path).posterior(dataset.benign)
    pixels = torch.from_numpy(dataset.benign[2].read().copy())[None]
    with torch.no_grad():
        dist = vae.encode(pixels.permute(0, 3, 1, 2) / 127.5 - 1).latent_dist
    scale = vae.config["scaling_factor"]
    half = torch.finfo(torch.float16).eps / 2
    torch.testing.assert_close(found.mean[2:3], dist.mean * scale, rtol=half, atol=1e-5)
    wanted = dist.logvar.clamp(-30, 20)
    torch.testing.assert_close(2 * (found.std[2:3] / scale).log(), wanted, rtol=half, atol=1e-4)


def test_second_time_nothing_is_encoded(vae, dataset, tmp_path):
    first = filled(vae, dataset, tmp_path).posterior(dataset.unsafe)
    assert vae.encoded == len(dataset.pictures())
    again = filled(vae, dataset, tmp_path).posterior(dataset.unsafe)
    assert vae.encoded == len(dataset.pictures())
    assert torch.equal(first.mean, again.mean)
    assert torch.equal(first.std, again.std)


def test_another_vae_or_resolution_has_its_own_cache(vae, dataset, tmp_path):
    filled(vae, dataset, tmp_path)
    LatentCache(vae, 16, tmp_path).fill([])
    digest = vae_digest(vae)
    with torch.no_grad():
        next(vae.parameters()).add_(1e-3)
    assert vae_digest(vae) != digest
    filled(vae, dataset, tmp_path)
    assert vae.encoded == 2 * len(dataset.pictures())
    assert len(list(tmp_path.iterdir())) == 2


def test_many_pictures_are_many_files_and_added_ones_one_more(vae, dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(latents, "_SHARD", 4)
    cache = LatentCache(vae, 8, tmp_path)
    cache.fill(dataset.pictures()[:10])
    before = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    assert len(before) == 3
    assert not cache._memory, "what was written is not kept"
    again = filled(vae, dataset, tmp_path)
    assert vae.encoded == len(dataset.pictures())
    assert all(file.stat().st_mtime_ns == time for file, time in before.items())
    assert all(picture.digest in again for picture in dataset.pictures())


def test_a_large_posterior_is_read_where_it_is_asked_for(vae, dataset, tmp_path, monkeypatch):
    cache = filled(vae, dataset, tmp_path)
    small = cache.posterior(dataset.benign)
    monkeypatch.setattr(latents, "_IN_MEMORY", 0)
    large = cache.posterior(dataset.benign).to(torch.device("cpu"))
    assert isinstance(small.mean, torch.Tensor)
    assert isinstance(large.mean, latents.Rows)
    assert len(large) == len(small) == 6
    assert large.mean.shape == small.mean.shape
    index, noise = torch.tensor([4, 0, 4]), torch.randn(3, *small.mean.shape[1:])
    assert torch.equal(large.sample(index, noise), small.sample(index, noise))
    assert torch.equal(large.sample(index, None), small.sample(index, None))


@pytest.mark.parametrize(("resolution", "at_once"), [(8, 16), (512, 4), (1024, 1), (2048, 1)])
def test_large_pictures_are_encoded_one_by_one(vae, dataset, resolution, at_once, monkeypatch):
    sizes = []
    cache = LatentCache(vae, resolution, None)
    monkeypatch.setattr(cache, "_encode", lambda pictures: sizes.append(len(pictures)))
    cache.fill(dataset.pictures() + dataset.pictures())
    assert max(sizes) == at_once
    assert sum(sizes) == len(dataset.pictures())


def test_a_picture_that_changed_is_not_encoded(vae, own_pictures):
    dataset = read_dataset(config.Data(folder=str(own_pictures), block=4, regions="boxes"), 8, 2)
    other, path = (own_pictures / "benign" / f"{i}.png" for i in (0, 1))
    for damage in (other.read_bytes(), b"?"):
        path.write_bytes(damage)
        with pytest.raises(DataError, match=r"benign/1\.png") as error:
            filled(vae, dataset, None)
        assert error.value.code == "data_changed"


def test_no_pixels_lie_in_the_cache(vae, dataset, tmp_path):
    """Nothing but half-precision moments of the announced shape, called by hashes."""
    filled(vae, dataset, tmp_path)
    wanted = {picture.digest for picture in dataset.pictures()}
    for path in tmp_path.rglob("*"):
        file = Weights(path)
        assert file.metadata == {}
        assert set(file.shapes) == wanted
        assert set(file.shapes.values()) == {(8, 4, 4)}
        content = path.read_bytes()
        for picture in dataset.pictures():
            assert picture.read().tobytes() not in content
            assert picture.name.encode() not in content


def reshape(path, shape) -> None:
    """Every tensor of a cache with its values in another order of sides."""
    file = Weights(path)
    tensors = {name: file.load(name).reshape(shape) for name in file.shapes}
    atomic_save_safetensors(tensors, path, {}, overwrite=True)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-7]),
        lambda path: path.write_bytes(path.read_bytes()[:-2] + b"\xff\xff"),  # a NaN
        lambda path: reshape(path, (8, 2, 8)),
        lambda path: reshape(path, (4, 4, 8)),
    ],
    ids=["empty", "truncated", "nan", "other-sides", "other-channels"],
)
def test_damaged_cache_is_rebuilt_with_one_line(vae, dataset, tmp_path, caplog, damage):
    first = filled(vae, dataset, tmp_path).posterior(dataset.unsafe)
    (path,) = tmp_path.iterdir()
    damage(path)
    again = filled(vae, dataset, tmp_path).posterior(dataset.unsafe)
    assert torch.equal(first.mean, again.mean)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "rebuilding" in caplog.text
    cache = LatentCache(vae, 8, tmp_path)
    assert all(picture.digest in cache for picture in dataset.pictures())
    assert len(list(tmp_path.iterdir())) == 1, "the damaged file is gone"


def test_a_file_in_the_place_of_the_cache_names_the_remedy(vae, dataset, tmp_path):
    (tmp_path / ".latents").write_text("")
    with pytest.raises(FileError, match=r"data\.cache"):
        filled(vae, dataset, tmp_path / ".latents")


def test_without_folder_nothing_is_written(vae, dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(filled(vae, dataset, None).posterior(dataset.benign)) == 6
    assert list(tmp_path.iterdir()) == []


def test_overflowing_vae_names_the_picture(vae, dataset):
    with torch.no_grad():
        vae.quant_conv.weight.fill_(float("nan"))
    with pytest.raises(DataError, match=r"unsafe/0\.png"):
        filled(vae, dataset, None)


def test_sample_is_mean_plus_scaled_noise():
    posterior = Posterior(torch.tensor([[1.0], [5.0]]), torch.tensor([[0.5], [2.0]]))
    index = torch.tensor([1, 0])
    assert posterior.sample(index, None).flatten().tolist() == [5.0, 1.0]
    assert posterior.sample(index, torch.ones(2, 1)).flatten().tolist() == [7.0, 1.5]
