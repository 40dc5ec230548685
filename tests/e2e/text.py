#!/usr/bin/python3
"""From text to text: data bytes, data show, train, sample."""
from lib import *


def texts_of_lines(folder):
    """Files a person might give: two languages of a line each, some bytes that are no UTF-8, nothing, a copy."""
    folder.mkdir()
    for i in range(40):
        (folder / f"{i:02}.txt").write_text("the cat sat on the mat\n" * (20 + i) if i % 2 else
                                            "der Mond über dem Meer\n" * (20 + i))
    (folder / "raw.bin").write_bytes(bytes(range(256)) * 4)
    (folder / "empty.txt").write_text("")
    (folder / "copy.txt").write_text((folder / "00.txt").read_text())
    return folder


@case
def data_bytes_and_show(tmp):
    folder = texts_of_lines(tmp / "in")
    r = hcgen("data", "bytes", "-r", folder, "-o", tmp / "d", "--val", 10)
    expect("2 of 43 files left out" in r.out, r)
    tokens = []
    for name in ("train", "val"):
        raw = (tmp / f"d/{name}.bin").read_bytes()
        head, body = np.frombuffer(raw[:1024], "<i4"), np.frombuffer(raw[1024:], "<u2")
        expect(list(head[:3]) == [20240520, 1, len(body)] and not head[3:].any(), head[:4])
        expect(f"{name}.bin: {(body == 256).sum()} documents, {len(body)} tokens" in r.out, r)
        show = hcgen("data", "show", tmp / f"d/{name}.bin").out
        expect(f"tokens     {len(body)}, the largest 256" in show and "<bos>" in show, show)
        tokens.append(body)
    texts = {bytes(x.astype("u1")) for t in tokens for x in np.split(t, np.flatnonzero(t == 256))[1:]}
    want = {b"\0" + p.read_bytes() for p in folder.iterdir() if p.stat().st_size}     # bos as a byte is 0
    expect(texts == want, "other documents than were given")
    again = hcgen("data", "bytes", "-r", folder, "-o", tmp / "e", "--val", 10)
    expect(again.rc == 0 and all((tmp / "d" / n).read_bytes() == (tmp / "e" / n).read_bytes()
                                 for n in ("train.bin", "val.bin")), "not the same bytes twice")


@case
def train_and_sample(tmp):
    hcgen("data", "bytes", "-r", texts_of_lines(tmp / "in"), "-o", tmp / "d", "--val", 10)
    train(tmp / "a", *data_at(tmp / "d"), *sets(train__steps=150, train__lr=0.01, numerics__storage="bf16",
                                                numerics__gemm="bf16"))

    def sample(*words):
        return hcgen("sample", tmp / "a/run", "--prompt", "the ca", "-n", 100, *words).out

    greedy = sample("--temperature", 0)
    expect(greedy.startswith("the cat sat on the mat\nthe cat sat on the mat\n"), greedy)
    expect(greedy == sample("--temperature", 0, "--threads", 1) == sample("--temperature", 0, "--seed", 5), "greedy")
    expect(sample("--seed", 1) == sample("--seed", 1), "same seed, other text")
    expect(sample("--temperature", 50, "--seed", 1) != sample("--temperature", 50, "--seed", 2), "seeds change nothing")
    german = hcgen("sample", tmp / "a/run", "--prompt", "der Mond ü", "-n", 40, "--temperature", 0).out
    expect(german.startswith("der Mond über dem Meer\n"), german)
    long = hcgen("sample", tmp / "a/run", "--prompt", "the cat sat on the mat\n" * 10, "-n", 3, "--temperature", 0).out
    expect(long.endswith("the\n"), "a prompt longer than the sequence:", long)
    expect(hcgen("sample", tmp / "a/run", "-n", 3, "--temperature", 0).out, "no prompt")


@case
def sample_of_tokens(tmp):
    """A vocabulary that is no bytes: token ids in, token ids out."""
    train(tmp / "a", *data_at(ROOT / "tests/golden/data"), spec=REFERENCE)
    r = hcgen("sample", tmp / "a/run", "--prompt", "3 5 7", "-n", 6, "--temperature", 0)
    ids = [int(x) for x in r.out.split()]
    expect(ids[:3] == [3, 5, 7] and len(ids) == 9 and all(0 <= x < 101 for x in ids), ids)
    for prompt in ("3 101", "3 -1", "hello"):
        r = hcgen("sample", tmp / "a/run", "--prompt", prompt, "-n", 1, want=2)
        expect("prompt" in r.err, r)


@case
def sample_says_what_verify_says(tmp):
    """Greedy tokens are the largest logits of the program that was verified."""
    train(tmp / "a", *data_at(ROOT / "tests/golden/data"), spec=REFERENCE)
    tokens = [3] + [4 + i % 9 for i in range(200)]
    write_shard(tmp / "t.bin", tokens)
    hcgen("verify", REFERENCE, "--params", tmp / "a/run/final.safetensors", "--tokens", tmp / "t.bin", "--logits",
          "--dump", tmp / "dump")
    best = read_params(tmp / "dump")["logits"].argmax(1)
    for n in (1, 2, 9, 31):
        r = hcgen("sample", tmp / "a/run", "--prompt", " ".join(map(str, tokens[1:n])), "-n", 1, "--temperature", 0)
        expect(int(r.out.split()[-1]) == best[n - 1], n, r.out, best[:n])


if __name__ == "__main__":
    main()
