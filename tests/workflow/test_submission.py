"""A submission of nuScenes' test split is asked for by name, and belongs to nothing else."""

import json

RUN = "centerpoint-det"


def test_without_a_test_set_it_says_so(sealed):
    assert "holds no v1.0-test" in sealed.snakemake("-n", f"submission_{RUN}", fails=True)


def test_only_what_a_submission_needs_is_made(sealed):
    folder = sealed.folder / "data/town/v1.0-test"
    folder.mkdir()
    (folder / "sample.json").write_text(json.dumps([]))
    needed = {"test_doctor": 1, "test_infos": 1, "test_predict": 1, "submission": 1}
    assert sealed.plan(f"submission_{RUN}") == needed
    assert not sealed.plan("all")
