import numpy as np
import pytest

from xmsd_jax.data.video import VideoError, read_video, write_video


def make_frames(f: int = 20, y: int = 96, x: int = 64) -> np.ndarray:
    rows, columns = np.mgrid[:y, :x]
    frames = [np.stack([rows * 2, columns * 3, 40 + rows + 5 * i], axis=-1) for i in range(f)]
    return np.stack(frames).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "a.mp4"
    write_video(path, make_frames(), fps=20)
    return path


def test_a_written_video_reads_back_frame_by_frame_on_time(video):
    frames, times = read_video(video)
    assert frames.shape == (20, 96, 64, 3)
    assert frames.dtype == np.uint8
    assert np.array_equal(times, np.arange(20) * 50_000)
    assert times.dtype == np.int64
    assert np.abs(frames.astype(int) - make_frames()).mean() < 2
    distance = np.abs(frames[:, None].astype(int) - make_frames()).mean(axis=(2, 3, 4))
    assert np.array_equal(distance.argmin(axis=1), np.arange(20))


def test_truncated_and_foreign_files_are_refused_in_one_line(video, tmp_path):
    whole = video.read_bytes()
    cuts = (whole[: len(whole) * i // 8] for i in range(1, 8))
    for content in (b"", b"text " * 50, b"PK\x03\x04" + bytes(300), *cuts):
        path = tmp_path / "b.mp4"
        path.write_bytes(content)
        with pytest.raises(VideoError) as caught:
            read_video(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert len(str(caught.value).splitlines()) == 1


def test_a_video_whose_data_is_cut_behind_its_index_is_refused(video, tmp_path):
    """The index in front (as streaming files have it) announces frames that are no longer there."""
    import av

    path = tmp_path / "front.mp4"
    with av.open(str(video)) as source, av.open(str(path), "w", options={"movflags": "faststart"}) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    assert len(read_video(path)[0]) == 20
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(VideoError, match=r"front\.mp4"):
        read_video(path)


def test_a_playlist_that_names_other_files_is_not_followed(video, tmp_path):
    for text in (f"#EXTM3U\n#EXTINF:1,\n{video}\n", f"ffconcat version 1.0\nfile '{video}'\n"):
        (tmp_path / "list.mp4").write_text(text)
        with pytest.raises(VideoError, match="not a readable mp4"):
            read_video(tmp_path / "list.mp4")


def test_missing_and_too_large_videos_are_refused(video, tmp_path):
    with pytest.raises(VideoError, match="no such file"):
        read_video(tmp_path / "none.mp4")
    with pytest.raises(VideoError, match="more than 50000 bytes"):
        read_video(video, max_bytes=50_000)


@pytest.mark.parametrize(
    ("shape", "kind"),
    [((0, 4, 4, 3), np.uint8), ((2, 5, 4, 3), np.uint8), ((2, 4, 4, 3), np.float32), ((2, 4, 4), np.uint8)],
)
def test_what_is_no_video_is_not_written(shape, kind, tmp_path):
    with pytest.raises(ValueError, match="even height and width"):
        write_video(tmp_path / "a.mp4", np.zeros(shape, kind), fps=20)
    assert not list(tmp_path.iterdir())
