"""Downloads: checked, continued after an interruption, and never left under the final name when incomplete."""

import http.server
import threading

import pytest

from cct.data import DataError, files

BODY = bytes(range(256)) * 20_000  # 5.1 MB: several chunks


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves BODY, with or without ranges; `stop_after` ends the connection early, as a lost network does."""

    ranges, stop_after, requests = True, None, []

    def do_GET(self):
        asked = self.headers.get("Range")
        type(self).requests.append(asked)
        start = int(asked.split("=")[1].rstrip("-")) if asked and self.ranges else 0
        if start >= len(BODY):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(BODY) - start))
        self.end_headers()
        self.wfile.write(BODY[start:][: self.stop_after])

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    class Own(Handler):
        requests = []  # noqa: RUF012 - one list for each test

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Own) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        Own.url = f"http://127.0.0.1:{server.server_port}/set.tar.gz"
        yield Own
        server.shutdown()


def get(server, folder, sha256=None):
    remote = files.Remote(server.url, sha256 or files.checksum(BODY))
    return files.obtain(remote, folder, "the set", [folder], download=True)


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_download(server, tmp_path, capfd):
    path = get(server, tmp_path / "a/b")
    assert path == tmp_path / "a/b/set.tar.gz" and path.read_bytes() == BODY
    assert names(path.parent) == ["set.tar.gz"]
    assert f"downloading {server.url}" in capfd.readouterr().err


@pytest.mark.parametrize("ranges", [True, False])
def test_a_lost_connection_is_continued(server, tmp_path, ranges):
    server.stop_after, server.ranges = 3_000_000, ranges
    with pytest.raises(
        DataError, match=r"could not be downloaded .*ended after 3000000 of 5120000 bytes; run again to continue"
    ):
        get(server, tmp_path)
    assert names(tmp_path) == ["set.tar.gz.part"]
    server.stop_after = None
    assert get(server, tmp_path).read_bytes() == BODY
    assert names(tmp_path) == ["set.tar.gz"]
    assert server.requests == [None, "bytes=3000000-"]


def test_a_complete_part_is_taken(server, tmp_path):
    (tmp_path / "set.tar.gz.part").write_bytes(BODY)
    assert get(server, tmp_path).read_bytes() == BODY


@pytest.mark.parametrize("part", [None, b"of another file"])
def test_a_wrong_checksum_leaves_nothing(server, tmp_path, part):
    if part:
        (tmp_path / "set.tar.gz.part").write_bytes(part)
    with pytest.raises(DataError, match=r"the download has sha256 .* published is .*run again"):
        get(server, tmp_path, None if part else "0" * 64)
    assert names(tmp_path) == []


def test_unreachable_server(tmp_path):
    remote = files.Remote("http://127.0.0.1:9/set.tar.gz", "0" * 64)
    with pytest.raises(DataError, match=r"could not be downloaded \(.*refused\)\. Put set.tar.gz \(published at http"):
        files.obtain(remote, tmp_path, "the set", [tmp_path], download=True)
    assert names(tmp_path) == []


def test_a_folder_that_cannot_be_made(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="could not be downloaded"):
        get(server, tmp_path / "file/below")


@pytest.mark.parametrize("digits", [32, 64])
def test_checksums_by_length(digits):
    right = files.checksum(b"data", "md5" if digits == 32 else "sha256")
    files.expect_checksum(b"data", right, "FILE")
    files.expect_checksum(b"data", None, "FILE")
    with pytest.raises(DataError, match=f"^FILE: damaged or changed, its {'md5' if digits == 32 else 'sha256'} is"):
        files.expect_checksum(b"Data", right, "FILE")


def test_search_order(monkeypatch, tmp_path):
    monkeypatch.setenv("CCT_DATA", str(tmp_path / "env"))
    monkeypatch.setenv("HOME", str(tmp_path))
    cache = tmp_path / ".cache/cct/data"
    assert files.roots("~/mine") == [tmp_path / "mine", tmp_path / "env", cache]
    assert files.roots() == [tmp_path / "env", cache]
    monkeypatch.delenv("CCT_DATA")
    assert files.roots() == [cache] == files.roots(cache)
