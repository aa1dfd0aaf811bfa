import pytest

from ddposink.prompts import MAX_BYTES, SETS, evaluation_prompts, load_prompts


def test_training_and_evaluation_prompts_are_disjoint():
    assert not set(SETS["emoji-train"]) & set(SETS["emoji-heldout-64"])
    assert not set(SETS["emoji-train-128"]) & set(SETS["emoji-heldout-64"])
    assert set(SETS["emoji-heldout"]) < set(SETS["emoji-heldout-64"])
    assert not set(SETS["animals-45"]) & set(SETS["animals-heldout"])
    assert (len(SETS["animals-45"]), len(SETS["emoji-heldout-64"])) == (45, 64)
    assert len(SETS["emoji-train-128"]) == 128


@pytest.mark.parametrize("name", list(SETS))
def test_no_set_repeats_itself(name):
    assert len(set(SETS[name])) == len(SETS[name])


def test_a_file_has_one_prompt_per_line(tmp_path):
    file = tmp_path / "p.txt"
    file.write_bytes("\ufeffred apple\r\n\n  café ☕ \n".encode())
    found = load_prompts(f"file:{file}")
    assert found.prompts == ("red apple", "café ☕")
    assert found.sha256 != load_prompts("emoji-train").sha256


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "has no prompts"),
        (b"\n  \n", "has no prompts"),
        ("apple\ncaf\xe9\n".encode("latin-1"), r"p.txt:2: not UTF-8 \(byte 0xe9\)"),
        ("apple".encode("utf-16"), "not UTF-8"),
        (b"apple\0", "NUL"),
        (b"a" * 1001, "prompt 1 is longer than 1,000"),
        (b"a\n" * 100_001, "at most 100,000"),
        (b"a" * (MAX_BYTES + 1), "larger than 8 MiB"),
    ],
    ids=["empty", "blank", "latin-1", "utf-16", "nul", "long", "many", "huge"],
)
def test_a_file_that_is_no_list_of_prompts_is_refused(tmp_path, data, message):
    file = tmp_path / "p.txt"
    file.write_bytes(data)
    with pytest.raises(ValueError, match=message):
        load_prompts(f"file:{file}")


def test_missing_files_and_unknown_names():
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        load_prompts("file:/no/such/file")
    with pytest.raises(ValueError, match="did you mean 'emoji-train'"):
        load_prompts("emoji-trian")


def test_repeats_are_kept_for_training_and_dropped_for_evaluation(tmp_path):
    file = tmp_path / "p.txt"
    file.write_text("owl\ncat\n owl \ndog\ncat\n")
    assert load_prompts(f"file:{file}").prompts == ("owl", "cat", "owl", "dog", "cat")
    assert evaluation_prompts(f"file:{file}").prompts == ("owl", "cat", "dog")
    assert evaluation_prompts("emoji-heldout") == load_prompts("emoji-heldout")
