from importlib.resources import files

import numpy as np

from xmsd_jax.data.recording import davis_clips, davis_recording


def test_the_shipped_recording_has_the_values_of_the_source(needs_shared):
    recording = davis_recording()
    with np.load(needs_shared / "data" / "davis346_traffic.npz") as source:
        assert all(np.array_equal(getattr(recording.events, name), source[name]) for name in "xypt")
        assert np.array_equal(recording.frames, source["frames"])
        assert np.array_equal(recording.frame_times_us, source["ft"])


def test_three_one_second_clips_half_a_second_apart_hold_exactly_their_window():
    recording, clips = davis_recording(), davis_clips()
    assert [clip.start_us for clip in clips] == [-3653, 496_347, 996_347]
    assert [len(clip.events) for clip in clips] == [35_433, 31_557, 30_535]
    for clip in clips:
        assert clip.stop_us - clip.start_us == 1_000_000
        t, times = recording.events.t, recording.frame_times_us
        assert np.array_equal(clip.events.t, t[(t >= clip.start_us) & (t < clip.stop_us)])
        chosen = (times >= clip.start_us) & (times < clip.stop_us)
        assert np.array_equal(clip.frame_times_us, times[chosen])
        assert clip.video.shape == (25, 260, 346, 3)
        assert all(np.array_equal(clip.video[..., channel], recording.frames[chosen]) for channel in range(3))
    assert {clip.sequence for clip in clips} == {"davis346_traffic"}
    assert len({clip.name for clip in clips}) == 3


def test_the_licence_of_the_recording_lies_beside_it():
    notice = (files("xmsd_jax.data") / "recordings" / "NOTICE").read_text()
    assert "Copyright (c) 2020 International Centre for Neuromorphic Systems" in notice
    assert "Permission is hereby granted" in notice
