"""A person who reads the page at /docs of a master: names the key, and tries something out."""

import argparse
import json
from urllib.parse import urlsplit

from chromium import Browser
from roles import say

OPERATION = "#operations-master-getInfo"
FOLDED = [
    ("#operations-instances-changeInstance", "/instances/{id}", "patch"),
    ("#operations-events-streamEvents", "/events", "get"),
]


def check_quiet(browser, url):
    """Nothing was asked of others, and nothing went wrong."""
    origin = "{0.scheme}://{0.netloc}/".format(urlsplit(url))
    strange = [url for url in browser.requests if not url.startswith((origin, "data:", "about:"))]
    assert not strange, strange
    assert not browser.complaints, browser.complaints


def unfold(browser, operation, path, method):
    """Opens an operation that is folded up, and waits until the page has made out what it is: asked
    to execute it before, Swagger UI 5.32 says that it does not know it, and goes on saying so."""
    known = f"ui.specSelectors.specResolvedSubtree(['paths', '{path}', '{method}'])"
    is_open = f"!!document.querySelector('{operation}.is-open')"
    browser.wait("ui.specSelectors.loadingStatus() === 'success'")
    browser.click_until(f"{operation} .opblock-summary-control", f"{is_open} && !!{known}?.size")


def try_out(browser):
    """Has the page ask, and gives the status and the body that it shows."""
    unfold(browser, OPERATION, "/info", "get")
    answer = f"{OPERATION} .live-responses-table .response"
    status = browser.click_until(
        f"{OPERATION} .execute",
        f"document.querySelector('{answer} .response-col_status')?.innerText.trim()",
    )
    body = browser.wait(f"document.querySelector('{answer} .highlight-code code')?.innerText")
    return status.split()[0], json.loads(body)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True, help="of the page")
    parser.add_argument("--key", required=True)
    parser.add_argument("--pictures", help="folder to leave pictures in")
    options = parser.parse_args()

    def take_picture(name):
        if options.pictures:
            browser.take_picture(f"{options.pictures}/{name}.png")

    browser = Browser()
    try:
        browser.open(options.url)
        browser.wait("document.querySelectorAll('.opblock').length")
        title = browser.evaluate("document.querySelector('.info .title').innerText")
        operations = browser.evaluate(
            "[...document.querySelectorAll('.opblock')].map(each => "
            "each.querySelector('.opblock-summary-method').innerText.trim() + ' ' + "
            "each.querySelector('.opblock-summary-path').dataset.path)"
        )
        errors = browser.evaluate("document.querySelector('.errors-wrapper')?.innerText ?? ''")
        assert not errors, errors
        say("shown", title=title, operations=operations)
        check_quiet(browser, options.url)
        take_picture("page")

        browser.click(".btn.authorize")
        browser.write(".auth-container input", options.key)
        take_picture("key")
        browser.click(".auth-container button.authorize")
        browser.wait("document.querySelector('.auth-container').innerText.includes('Logout')")
        browser.click(".auth-container .btn-done")

        status, body = try_out(browser)
        take_picture("answer")
        say("answered", status=status, body=body)
        check_quiet(browser, options.url)

        # Nor does anything go wrong in what is folded up at first, of which these show most.
        for operation, path, method in FOLDED:
            unfold(browser, operation, path, method)
            browser.wait(f"!!document.querySelector('{operation} .response .renderedMarkdown')")
            browser.click(f"{operation} .opblock-summary-control")
        check_quiet(browser, options.url)
        say("unfolded")

        # The key is still there the next time.
        browser.open("about:blank")
        browser.open(options.url)
        status, body = try_out(browser)
        say("answered", status=status, body=body)
        check_quiet(browser, options.url)
    finally:
        browser.close()
    say("done")


main()
