#!/bin/sh
# Runs a command as root on this machine as it is, with every file at its place, and forgets whatever it changes:
#
#   throwaway.sh DIRECTORY COMMAND [ARGUMENT...]
#
# DIRECTORY is where the command starts. All file systems that matter are overlaid in a mount namespace of its own.
# Exit status: the command's, or 77 where this is not allowed.
set -eu
if [ -z "${THROWAWAY_VIEW-}" ]; then
    not_here() {
        echo "throwaway.sh: $1"
        exit 77
    }
    [ "$(id -u)" = 0 ] || not_here "needs root"
    unshare --mount true 2>/dev/null || not_here "mount namespaces are denied"
    grep -qw overlay /proc/filesystems || modprobe overlay 2>/dev/null || not_here "there is no overlay file system"
    THROWAWAY_VIEW=$(mktemp -d)
    export THROWAWAY_VIEW
    status=0
    unshare --mount --pid --fork --kill-child --propagation private sh "$0" "$@" || status=$?
    rmdir "$THROWAWAY_VIEW"
    exit $status
fi

view=$THROWAWAY_VIEW directory=$1
shift
unset THROWAWAY_VIEW
mount -t tmpfs -o mode=755 tmpfs "$view" || exit 77 # a container without CAP_SYS_ADMIN
root=$view/root
mkdir "$root"
overlaid=
overlay() { # overlay MOUNT_POINT: at the same place in the view
    [ -n "$1" ] || return 0
    case " $overlaid " in *" $1 "*) return ;; esac
    overlaid="$overlaid $1"
    layers=$view/layers$(echo "$overlaid" | wc -w)
    mkdir -p "$layers/upper" "$layers/work"
    chmod --reference="$1" "$layers/upper"
    mount -t overlay -o "lowerdir=$1,upperdir=$layers/upper,workdir=$layers/work" overlay "$root${1%/}" || exit 77
}
overlay /
for place in /usr /var /tmp "$HOME" "${CARGO_HOME:-$HOME}" "${RUSTUP_HOME:-$HOME}" "$directory" "$0"; do
    overlay "$(findmnt --noheadings --output TARGET --target "$place")"
done
mount --rbind /dev "$root/dev"
mount -t proc proc "$root/proc"
export THROWAWAY=yes # for commands that must not run elsewhere
exec chroot "$root" sh -c 'cd "$1" && shift && exec "$@"' sh "$directory" "$@"
