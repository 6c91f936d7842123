"""Runs the commands in tmux, presses keys, and checks what stands on the screen."""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

from shop import POLICIES, Shop


class Terminal:
    """A shell in a tmux of its own."""

    def __init__(self, folder, binary, address):
        self.socket = f"tailwater-{time.time_ns()}"
        shutil.copy(binary, folder / "tailwater")
        environment = [f"PATH={folder}:/usr/local/bin:/usr/bin:/bin", f"TAILWATER_ADDRESS={address}",
                       "PS1=$ ", "LANG=C.UTF-8", "LC_ALL=C.UTF-8"]
        self.folder = folder
        self._tmux("-f", "/dev/null", "new-session", "-d", "-x", "100", "-y", "24", "-c", str(folder),
                   "env", *environment, "bash", "--norc", "--noprofile")
        self._tmux("set-option", "-g", "window-size", "manual")
        self.until("$", "the prompt of the shell")

    def _tmux(self, *arguments):
        command = ["tmux", "-u", "-L", self.socket, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def end(self):
        self._tmux("kill-server")

    def screen(self):
        lines = [line.rstrip() for line in self._tmux("capture-pane", "-p").split("\n")]
        return "\n".join(lines).rstrip("\n")

    def flag(self, name):
        return self._tmux("display-message", "-p", f"#{{{name}}}").strip()

    def child(self):
        """The process that the shell waits for."""
        shell = self.flag("pane_pid")
        return int(pathlib.Path(f"/proc/{shell}/task/{shell}/children").read_text().split()[0])

    def press(self, *keys):
        self._tmux("send-keys", *keys)

    def type(self, text):
        self._tmux("send-keys", "-l", text)

    def run(self, command):
        """A command on an empty screen."""
        self.type(f"clear; {command}")
        self.press("Enter")

    def resize(self, width, height):
        self._tmux("resize-window", "-x", str(width), "-y", str(height))

    def until(self, wanted, what, seconds=20):
        """Waits until something is on the screen, and returns the screen."""
        is_there = wanted if callable(wanted) else lambda screen: wanted in screen
        end = time.monotonic() + seconds
        while True:
            screen = self.screen()
            if is_there(screen):
                return screen
            assert time.monotonic() < end, f"{what}: not on the screen after {seconds} s:\n{screen}"
            time.sleep(0.1)

    def has_ended(self, code):
        """Waits for the shell, asks it for the exit code, and checks that the terminal is as it was."""
        self.until(lambda screen: screen.endswith("$"), "the prompt of the shell")
        self.type('echo "exit=$?"; stty -a | tr ";" "\\n" | grep -c "^ *isig icanon .* echo "')
        self.press("Enter")
        self.until(lambda screen: f"\nexit={code}\n1\n$" in f"\n{screen}", f"the exit code {code}")
        assert self.flag("alternate_on") == "0", "the alternate screen is still there"
        assert self.flag("cursor_flag") == "1", "the cursor is still hidden"

    def keep(self, name, screen):
        (self.folder / f"{name}.txt").write_text(screen + "\n")


def failures(shop):
    """The error of `top` when it cannot start."""
    piped = subprocess.run([shop.binary, "top", "--address", shop.address],
                           capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert piped.returncode == 1 and "needs a terminal" in piped.stderr, piped
    assert piped.stdout == "", piped


def unreachable(terminal, address):
    terminal.run(f"tailwater top --address {address}")
    terminal.until("error: cannot reach Tailwater at", "that there is no instance")
    terminal.has_ended(1)


def top(shop, terminal):
    terminal.run("tailwater top")
    screen = terminal.until(
        lambda screen: "accepting spans" in screen and "errors  " in screen and "in 0" not in screen,
        "the figures")
    assert "Losses   none" in screen, screen
    screen = terminal.until(lambda screen: re.search("up 1[2-9]s", screen), "figures of ten seconds")
    terminal.keep("top", screen)

    terminal.press("r")
    screen = terminal.until("enable_lifecycle", "which key permits a reload")
    assert "errors  " in screen, screen
    terminal.press("Escape")
    terminal.until(lambda screen: "enable_lifecycle" not in screen, "Esc")

    terminal.press("/")
    terminal.until("trace id:", "the prompt for a trace id")
    terminal.type(shop.failed[-20])
    terminal.press("Enter")
    terminal.until("was kept by the policy `errors`", "why a trace was kept")
    terminal.keep("top-trace", terminal.screen())
    terminal.press("/")
    terminal.type("00000000000000000000000000000001")
    terminal.press("Enter")
    terminal.until("the instance does not know this trace", "an unknown trace")
    terminal.press("/")
    terminal.type("no trace")
    terminal.press("Enter")
    terminal.until("hexadecimal digits", "what a trace id looks like")
    terminal.press("Escape")

    for width, height, wanted in [(50, 14, "share"), (20, 5, "Tailwater"), (120, 30, "keeps now")]:
        terminal.resize(width, height)
        terminal.until(lambda screen: wanted in screen and "Tailwater" in screen.split("\n")[0],
                       f"{wanted} at {width} x {height}")
    terminal.resize(100, 24)


def restart(shop, terminal):
    shop.stop()
    terminal.until("AWAY since", "that the instance is away")
    terminal.until("Connection refused", "why it is away")
    screen = terminal.until(lambda screen: re.search(r"figures\s+are\s+\d+s\s+old", screen), "since when")
    terminal.keep("top-away", screen)
    shop.configure(may_change=True)
    shop.start()
    terminal.until("it was restarted", "that the instance is back")
    terminal.until(lambda screen: "AWAY" not in screen and "accepting spans" in screen, "figures")

    terminal.press("r")
    terminal.until("Reloaded: the policies", "what came of a reload")
    shop.policies.write_text(POLICIES.replace("latency", "latencies"))
    terminal.press("r")
    terminal.until("the old policies stay in force", "that a reload failed")
    terminal.until("latencies", "why a reload failed")
    terminal.keep("top-reload", terminal.screen())
    shop.policies.write_text(POLICIES)
    terminal.press("r")
    terminal.until("Reloaded: the policies", "what came of a reload")
    terminal.press("C-c")
    terminal.has_ended(0)

    terminal.run("tailwater top")
    terminal.until("accepting spans", "the figures")
    terminal.press("q")
    terminal.has_ended(0)
    terminal.run("tailwater top")
    terminal.until("accepting spans", "the figures")
    os.kill(terminal.child(), signal.SIGTERM)
    terminal.has_ended(0)


def others(shop, terminal):
    failed = shop.failed[-1]
    terminal.resize(130, 24)
    terminal.run("tailwater tail --kept --max-per-second 5")
    terminal.until(lambda screen: screen.count(" kept ") > 5, "decisions")
    terminal.press("C-c")
    terminal.until(lambda screen: screen.endswith("$"), "the prompt")
    terminal.keep("tail", terminal.screen())
    terminal.has_ended(0)

    terminal.until(lambda _: shop.is_decided(failed), "a decision")
    terminal.run(f"tailwater explain {failed}")
    terminal.until("was kept by the policy `errors`", "why a trace was kept")
    terminal.keep("explain", terminal.screen())
    terminal.has_ended(0)
    terminal.run("tailwater explain 1")
    terminal.until("does not know this trace", "an unknown trace")
    terminal.has_ended(1)

    (terminal.folder / "new.toml").write_text(
        POLICIES.replace("sampling_percentage = 10", "sampling_percentage = 5"))
    terminal.run("tailwater try --seconds 3 new.toml")
    terminal.until("newly dropped:", "the difference")
    terminal.until(lambda screen: screen.endswith("$"), "the prompt")
    terminal.keep("try", terminal.screen())
    terminal.has_ended(0)

    terminal.run("tailwater record --seconds 3 --output traffic.rec")
    terminal.until(lambda screen: screen.endswith("\n$") and "traces" in screen, "the recording")
    terminal.keep("record", terminal.screen())
    terminal.has_ended(0)

    terminal.run("tailwater health")
    terminal.until(lambda screen: screen.startswith("ready\n"), "that it is ready")
    terminal.keep("health", terminal.screen())
    terminal.has_ended(0)


def main():
    binary, folder = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shop = Shop(str(binary), folder)
    shop.policies.write_text(POLICIES)
    shop.configure(may_change=False)
    terminal = None
    try:
        shop.start()
        shop.send_traffic()
        failures(shop)
        terminal = Terminal(folder, binary, shop.address)
        unreachable(terminal, "http://127.0.0.1:1")
        top(shop, terminal)
        restart(shop, terminal)
        others(shop, terminal)
        shop.is_over.set()
        shop.stop()
    finally:
        if terminal:
            terminal.end()
        shop.end()
    print(f"all commands do in a terminal what they should; screens are in {folder}")


if __name__ == "__main__":
    main()
