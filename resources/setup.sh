#!/bin/sh
# Prepares a machine: system packages where they are missing and may be installed, a virtual environment, the project.
#
#   sh resources/setup.sh         to use the program
#   sh resources/setup.sh test    to test it, too
#
# Safe to repeat, from any folder; a second run takes a moment. UNDERTONE_VENV moves the environment from .venv.
# Which build of torch arrives is pip's own configuration's business (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, pip.conf).
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
venv=${UNDERTONE_VENV:-$root/.venv}
case $venv in /*) ;; *) venv=$PWD/$venv ;; esac
PATH=$PATH:/usr/sbin:/sbin # ldconfig's place, which an ordinary user's PATH may lack

say() { printf '%s\n' "setup: $*" >&2; }
stop() { say "$*"; exit 3; }

case ${1-} in
    '') target=$root ;;
    test) target="${root}[test]" ;;
    *) printf 'usage: sh resources/setup.sh [test]\n' >&2; exit 2 ;;
esac

# --- system packages ---

if [ "$(id -u)" = 0 ]; then as_root=; elif sudo -n true 2>/dev/null; then as_root='sudo -n'; else as_root=no; fi

apt_command() { printf '%s' "apt-get install --no-install-recommends -y $*"; }

apt_install() { # PACKAGE...: installs, or explains in one line how to; false when they are not there afterwards
    if [ "$as_root" = no ] || ! command -v apt-get >/dev/null; then
        say "to install what is missing, run: sudo $(apt_command "$@")"
        return 1
    fi
    say "installing $*"
    apt_log=$(mktemp)
    for attempt in 1 2; do # the second with fresh package lists
        # shellcheck disable=SC2086  # as_root may be two words or none
        $as_root env DEBIAN_FRONTEND=noninteractive \
            apt-get -o DPkg::Lock::Timeout=120 install --no-install-recommends -y "$@" </dev/null >"$apt_log" 2>&1 &&
            { rm -f "$apt_log"; return 0; }
        # shellcheck disable=SC2086
        [ "$attempt" = 2 ] || $as_root apt-get update </dev/null >>"$apt_log" 2>&1 || break
    done
    tail -n 5 "$apt_log" >&2
    rm -f "$apt_log"
    say "that failed; run: ${as_root:+sudo }apt-get update && ${as_root:+sudo }$(apt_command "$@")"
    return 1
}

lacking() { # LIBRARY=PACKAGE...: the packages whose library the loader does not know
    known=$(ldconfig -p 2>/dev/null) || return 0
    for pair in "$@"; do
        case $known in *"${pair%%=*} "*) ;; *) printf '%s ' "${pair#*=}" ;; esac
    done
}

uninstalled() { # PACKAGE...: those that Debian's list of packages does not show as installed
    command -v dpkg-query >/dev/null || return 0
    for package in "$@"; do
        case $(dpkg-query -W -f='${Status}' "$package" 2>/dev/null) in *' installed') ;; *) printf '%s ' "$package" ;; esac
    done
}

system_packages() {
    [ "$(uname -s)" = Linux ] || return 0 # elsewhere the wheels hold these libraries
    sound=$(lacking libportaudio.so.2=libportaudio2)
    # shellcheck disable=SC2086
    [ -z "$sound" ] || apt_install $sound || say "going on: without it only microphone and loudspeaker are missing"
    window=$(lacking libGL.so.1=libgl1 libEGL.so.1=libegl1 libxkbcommon.so.0=libxkbcommon0 \
        libdbus-1.so.3=libdbus-1-3 libfontconfig.so.1=libfontconfig1 libglib-2.0.so.0=libglib2.0-0 \
        libxcb-cursor.so.0=libxcb-cursor0 libxkbcommon-x11.so.0=libxkbcommon-x11-0 libxcb-icccm.so.4=libxcb-icccm4 \
        libxcb-keysyms.so.1=libxcb-keysyms1 libxcb-shape.so.0=libxcb-shape0 libX11-xcb.so.1=libx11-xcb1)
    # shellcheck disable=SC2086
    if [ -n "$window" ] && ! apt_install $window; then
        [ "$target" = "$root" ] || stop "the window's tests need these libraries"
        say "going on: without them only the window is missing"
    fi
    [ "$target" = "$root" ] && return 0
    stack=$(uninstalled pulseaudio pulseaudio-utils libasound2-plugins)
    # shellcheck disable=SC2086
    [ -z "$stack" ] || apt_install $stack || stop "the sound's tests play and record through these packages"
}

# --- Python ---

fits() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' >/dev/null 2>&1; }
has_venv() { "$1" -c 'import ensurepip, venv' >/dev/null 2>&1; }

find_python() { # prints a Python that fits, one that can make environments if there is one
    found=
    for candidate in python3.13 python3.12 python3.11 python3 /usr/bin/python3; do
        fits "$candidate" || continue
        if has_venv "$candidate"; then printf '%s' "$candidate"; return; fi
        found=${found:-$candidate}
    done
    printf '%s' "$found"
}

choose_python() {
    python=$(find_python)
    if [ -z "$python" ]; then
        apt_install python3 python3-venv && python=$(find_python)
        [ -n "$python" ] || stop "no Python 3.11, 3.12 or 3.13 found: install one and repeat"
    fi
    has_venv "$python" && return
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    apt_install "python$version-venv" || stop "$python lacks venv and ensurepip"
    has_venv "$python" || stop "$python still lacks venv and ensurepip: repair or replace this Python"
}

# --- the environment ---

make_venv() {
    if "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        fits "$venv/bin/python" || stop "$venv is not for Python 3.11 to 3.13: remove it and repeat"
        return 0
    fi
    # A half-made one is made anew; a folder that is something else is left alone.
    [ ! -e "$venv" ] || [ -f "$venv/pyvenv.cfg" ] || rmdir "$venv" 2>/dev/null ||
        stop "$venv exists and is no virtual environment: move it away or set UNDERTONE_VENV"
    choose_python
    say "creating $venv with $("$python" --version)"
    "$python" -m venv --clear "$venv" >/dev/null || stop "that failed; remove $venv and repeat"
}

install_project() {
    wanted="$root $(cksum <"$root/pyproject.toml")"
    for done_before in "$target" "${root}[test]"; do # the test installation holds the other
        stamp=$venv/.installed${done_before#"$root"}
        [ "$wanted" = "$(cat "$stamp" 2>/dev/null)" ] && return 0
    done
    stamp=$venv/.installed${target#"$root"}
    log=$venv/install.log
    say "installing the Python packages (the first time several minutes)"
    # A pipe has the exit status of its end, so success is what the log says.
    { PIP_USER=0 PYTHONUNBUFFERED=1 "$venv/bin/python" -m pip install --disable-pip-version-check -e "$target" 2>&1 &&
        echo 'pip finished'; } </dev/null | tee "$log" | awk '
        /^ *(Downloading|Using cached) / && !/\.metadata/ { sub(/^ */, ""); print "  " $0 }
        /^Installing collected packages/ { print "  installing them" }
        { fflush() }' >&2
    if ! grep -q '^pip finished$' "$log"; then
        tail -n 15 "$log" >&2
        stop "pip could not install the packages (all of it: $log): see to the message above and repeat"
    fi
    printf '%s\n' "$wanted" >"$stamp"
}

system_packages
make_venv
install_project
