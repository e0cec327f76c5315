"""What an update leaves of the page before it."""

ASSETS = "/opt/hotline/page/assets"


def test_the_latest_page_is_served(host):
    assert "version3" in host.file("/opt/hotline/page/index.html").content_string


def test_the_one_before_can_still_be_loaded_and_older_ones_are_gone(host):
    kept = ["call-version2.js", "call-version3.js", "opus-unchanged.js"]
    assert sorted(host.file(ASSETS).listdir()) == kept
