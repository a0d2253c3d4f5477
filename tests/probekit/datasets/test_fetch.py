"""The downloader against a server on the loopback interface."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from probekit.datasets import fetch as fetching
from probekit.datasets.fetch import Remote, download, fetch
from probekit.runtime.errors import UserError

CONTENT = bytes(range(256)) * 20000
MD5 = hashlib.md5(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    content, ranges, cut, status, tag = CONTENT, True, None, None, '"v1"'
    asked: list

    def do_GET(self):
        cls = type(self)
        cls.asked.append((self.path, self.headers.get("Range")))
        if cls.status:
            self.send_error(cls.status)
            return
        body, start = cls.content, 0
        wanted = self.headers.get("Range")
        if wanted and cls.ranges and self.headers.get("If-Range", cls.tag) == cls.tag:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(body):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(body)}")
                self.end_headers()
                return
            self.send_response(206)
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(body) - start))
        self.send_header("ETag", cls.tag)
        self.end_headers()
        self.wfile.write(body[start : start + cls.cut if cls.cut else None])

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    handler = type("Fresh", (Handler,), {"asked": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        handler.url = f"http://127.0.0.1:{httpd.server_port}/file.bin"
        yield handler
        httpd.shutdown()
        thread.join()


def test_whole_download_with_progress_and_no_second_request(server, tmp_path):
    seen = []
    target = download(Remote(server.url, "f", MD5), tmp_path / "deep" / "f", lambda *a: seen.append(a))
    assert target.read_bytes() == CONTENT
    assert seen[-1] == ("f", len(CONTENT), len(CONTENT))
    assert [p.name for p in target.parent.iterdir()] == ["f"]
    download(Remote(server.url, "f", MD5), target)
    assert len(server.asked) == 1


@pytest.mark.parametrize("md5", [MD5, None])
def test_a_cut_connection_is_resumed_where_it_stopped(server, tmp_path, md5):
    server.cut = 1_500_000
    with pytest.raises(UserError, match="resumes where it stopped"):
        download(Remote(server.url, "f", md5), tmp_path / "f")
    assert not (tmp_path / "f").exists()
    part = (tmp_path / "f.partial").stat().st_size
    assert 0 < part <= 1_500_000
    server.cut = None
    download(Remote(server.url, "f", md5), tmp_path / "f")
    assert server.asked[-1][1] == f"bytes={part}-"
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_another_version_on_the_server_starts_over(server, tmp_path):
    server.cut = 1_000_000
    with pytest.raises(UserError):
        download(Remote(server.url, "f"), tmp_path / "f")
    server.cut, server.tag, server.content = None, '"v2"', CONTENT[::-1]
    download(Remote(server.url, "f"), tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT[::-1]


def test_a_server_without_ranges_starts_over(server, tmp_path):
    server.ranges = False
    (tmp_path / "f.partial").write_bytes(b"old")
    download(Remote(server.url, "f", MD5), tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT


@pytest.mark.parametrize("extra", [b"", b"more than there is"])
def test_a_part_that_is_whole_or_too_long(server, tmp_path, extra):
    (tmp_path / "f.partial").write_bytes(CONTENT + extra)
    download(Remote(server.url, "f", MD5), tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_a_wrong_checksum_leaves_nothing_behind(server, tmp_path):
    with pytest.raises(UserError, match=MD5):
        download(Remote(server.url, "f", "0" * 32), tmp_path / "f")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "f").write_bytes(b"another file")
    with pytest.raises(UserError, match="move it away"):
        download(Remote(server.url, "f", MD5), tmp_path / "f")


def test_errors_are_one_sentence(server, tmp_path):
    server.status = 404
    with pytest.raises(UserError, match="Not Found"):
        download(Remote(server.url, "f"), tmp_path / "f")
    with pytest.raises(UserError, match="could not be fetched"):
        download(Remote("http://127.0.0.1:9/nothing", "f"), tmp_path / "f")
    with pytest.raises(UserError, match="cannot be fetched, but cifar10"):
        fetch("imagenet32", tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="could not be written"):
        download(Remote(server.url, "f"), tmp_path / "file" / "f")


def test_fetch_takes_every_file_of_a_data_set(server, tmp_path, monkeypatch):
    remotes = (Remote(server.url, "a", MD5), Remote(server.url, "b"))
    monkeypatch.setitem(fetching.REMOTES, "mine", remotes)
    assert fetch("mine", tmp_path) == [tmp_path / "a", tmp_path / "b"]
    urls = [r.url for entry in fetching.REMOTES.values() for r in entry]
    assert all(url.startswith("http") for url in urls)
