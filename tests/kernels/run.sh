#!/usr/bin/env bash
# Runs the C tests on other kernels: tests/kernels/run.sh BUILD [KERNEL...]
#
# BUILD is the build directory; the kernels, the virtual machine and the logs are kept in BUILD/kernels. KERNEL is the
# beginning of a version ("6.1") or `newest`: of the kernels that Debian has, the newest that fits. Without one: 5.10, 6.1,
# 6.12 and newest. Needs gcc, python3, mkfs.ext4, apt-get and dpkg; the system's own apt configuration is not touched.
# qemu is fetched in the same way where it is not installed (on Debian; elsewhere please install it). Environment:
#
#   BACKENDS   comma-separated, "io_uring,epoll,auto" when not set. On `auto` only the programs AUTO_PROGRAMS are run:
#              all the others would only do again what they did on the backend that auto chose.
#   PROGRAMS   comma-separated names of test programs, all when not set
#   TESTS      comma-separated parts of names of tests, all when not set
#   AGAIN      run everything again. Otherwise a program that came to its end is not repeated until it, the kernel or a
#              setting is another one: a run that was interrupted goes on where it was, also in the middle of a kernel.
#   SECONDS_PER_TEST, SLOWNESS   the limits of the tests: the machine is emulated, more than ten times slower
#   SILENCE    seconds without a line from the machine after which it counts as dead
#
# A machine that dies is started again at the program it died in, and when it dies there once more, after it.
# The results are also in BUILD/kernels/results.md (of a run with BACKENDS, PROGRAMS or TESTS: results.part.md). Exit status:
# 0, or 1 when a test failed or a kernel is missing.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
source=$(cd "$here/../.." && pwd)
[ $# -ge 1 ] || { sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2; exit 2; }
build=$(cd "$1" && pwd)
shift
[ $# -gt 0 ] || set -- 5.10 6.1 6.12 newest
cache=$build/kernels
mkdir -p "$cache"
backends=${BACKENDS:-io_uring,epoll,auto}
part=${BACKENDS:-}${PROGRAMS:-}${TESTS:-}
part=${part:+.part} # the results of a run that is not complete stand beside the others
library=$build/lib/libupcall.a
keyring=/usr/share/keyrings/debian-archive-keyring.gpg

say() { echo "kernels: $*" >&2; }
die() { say "$*"; exit 1; }
[ -f "$library" ] || die "$library is missing: build the library first"

# ---- Packages, with an apt configuration of our own.

# apt ROOT STATUS COMMAND...: STATUS is the list of what counts as installed.
apt() {
    local root=$1 status=$2 command=$3
    shift 3
    "$command" -o Dir::State="$root/state" -o Dir::Cache="$root/cache" -o Dir::State::status="$status" \
        -o Dir::Etc::sourcelist="$root/sources.list" -o Dir::Etc::sourceparts=- -o APT::Architecture=amd64 \
        -o APT::Sandbox::User= -o Acquire::Languages=none -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false \
        -o APT::Install-Recommends=false -q "$@"
}

# apt_root ROOT SUITE...: makes it, and fetches the lists of the suites unless they are from today.
apt_root() {
    local root=$1 suite
    shift
    mkdir -p "$root/state/lists/partial" "$root/cache/archives/partial"
    : >"$root/nothing" # the list of packages of a system that has none
    for suite; do
        case $suite in
        *-security) echo "deb [signed-by=$keyring] http://deb.debian.org/debian-security $suite main" ;;
        *) echo "deb [signed-by=$keyring] http://deb.debian.org/debian $suite main" ;;
        esac
    done >"$root/sources.list"
    if [ -z "$(find "$root/updated" -mtime -1 2>/dev/null)" ]; then
        say "fetching lists of packages"
        if apt "$root" "$root/nothing" apt-get update >"$root/log" 2>&1 && ! grep -q '^[EW]: Failed' "$root/log"; then
            touch "$root/updated"
        else
            say "apt-get update failed, see $root/log"
        fi
    fi
}

get() { # get ROOT PACKAGE...: the package files, into ROOT/debs
    local root=$1
    shift
    rm -rf "$root/debs"
    mkdir -p "$root/debs"
    (cd "$root/debs" && apt "$root" "$root/nothing" apt-get download "$@" >"$root/log" 2>&1) ||
        { say "could not fetch $*: $(tail -n 1 "$root/log")"; return 1; }
}

# ---- The virtual machine.

qemu=(qemu-system-x86_64)
prepare_qemu() {
    ! command -v qemu-system-x86_64 >/dev/null || return 0
    local root=$cache/qemu codename needed
    if [ ! -x "$root/root/usr/bin/qemu-system-x86_64" ]; then
        codename=$(. /etc/os-release && [ "$ID" = debian ] && echo "$VERSION_CODENAME") || die "please install qemu-system-x86_64"
        apt_root "$root" "$codename" "$codename-security"
        # What is missing here, although installing it might conflict with what is there.
        needed=$(apt "$root" /var/lib/dpkg/status apt-get --simulate install qemu-system-x86 | sed -n 's/^Inst \([^ ]*\).*/\1/p')
        say "fetching qemu"
        # shellcheck disable=SC2086
        get "$root" $needed || die "there is no qemu"
        for package in "$root"/debs/*.deb; do dpkg -x "$package" "$root/root"; done
        rm -rf "$root/debs"
    fi
    local usr=$root/root/usr
    qemu=(env LD_LIBRARY_PATH="$usr/lib/x86_64-linux-gnu:$root/root/lib/x86_64-linux-gnu"
        "$usr/bin/qemu-system-x86_64" -L "$usr/share/qemu" -L "$usr/share/seabios")
}

# version_of WANTED: the newest version of the kernel packages that fits. Without lists of packages: of those fetched before.
version_of() {
    local prefix=$1 known
    [ "$prefix" != newest ] || prefix=
    known=$({
        apt "$cache/apt" "$cache/apt/nothing" apt-cache pkgnames linux-image-
        apt "$cache/apt" "$cache/apt/nothing" apt-cache pkgnames linux-binary-
    } | sed -nE 's/^linux-(image|binary)-([0-9]+\.[0-9]+\.[0-9][^ ]*)-amd64$/\2/p' | grep -v -e -cloud -e -rt)
    [ -n "$known" ] || known=$(cd "$cache" && printf '%s\n' linux-*/modules.cpio | sed -n 's|^linux-\([0-9].*\)/.*|\1|p')
    printf '%s\n' "$known" |
        awk -v prefix="$prefix" 'prefix == "" || $0 == prefix || index($0, prefix ".") == 1 || index($0, prefix "+") == 1 ||
            index($0, prefix "-") == 1' | sort -V | tail -n 1
}

# fetch_kernel VERSION: into cache/linux-VERSION: vmlinuz, modules.cpio.
fetch_kernel() {
    local version=$1 root=$cache/apt into=$cache/linux-$1 package packages=("linux-image-$1-amd64")
    [ ! -f "$into/modules.cpio" ] || return 0
    if [ -n "$(apt "$root" "$root/nothing" apt-cache pkgnames "linux-binary-$version-amd64")" ]; then
        packages=("linux-binary-$version-amd64" "linux-modules-$version-amd64") # since 6.19
    fi
    say "fetching ${packages[*]}"
    get "$root" "${packages[@]}" || return 1
    rm -rf "$into"
    mkdir -p "$into/files"
    for package in "$root"/debs/*.deb; do
        dpkg-deb --fsys-tarfile "$package" | tar -x -C "$into/files" --wildcards '*/vmlinuz*' '*/kernel/fs/*' '*/kernel/lib/*' \
            '*/kernel/crypto/*' '*/kernel/drivers/virtio/*' '*/kernel/drivers/block/*' 2>/dev/null || true # not all are in each
    done
    cp "$(find "$into/files" -name 'vmlinuz*' -type f)" "$into/vmlinuz" || return 1
    python3 "$here/pack.py" "$into/modules.new" --modules "$into/files" virtio_pci virtio_blk crc32c_generic crc32c_cryptoapi ext4 || return 1
    mv "$into/modules.new" "$into/modules.cpio"
    rm -rf "$into/files" "$root/debs"
}

# ---- The programs, and the file system they start from.

compile() { # compile PROGRAM SOURCE...
    [ -n "$(find "$1" -newer "$2" -newer "$library" -newer "$source/tests/c/check.h" -newer "$source/tests/c/op_support.h" \
        2>/dev/null)" ] && return 0
    local log
    # A test may have a getaddrinfo of its own, which libc's archive has in one member with freeaddrinfo: the first counts.
    log=$(gcc -std=c11 -D_GNU_SOURCE -O1 -static -s -Wl,--allow-multiple-definition -I"$source/include" -o "$1.new$$" "$2" "$library" -lpthread -ldl -lm 2>&1) ||
        { echo "$log" >&2; return 1; }
    mv "$1.new$$" "$1"
}
export -f compile
export source library
prepare_programs() {
    mkdir -p "$cache/tests" "$cache/etc"
    {
        printf '%s\n' "$cache/init" "$here/init.c" "$cache/supports" "$here/supports.c"
        for file in "$source"/tests/c/*.c; do
            printf '%s\n' "$cache/tests/$(basename "$file" .c)" "$file"
        done
    } | xargs -P "$(nproc)" -n 2 bash -c 'compile "$@"' compile || die "a test program does not compile"
    printf '127.0.0.1 localhost\n::1 localhost\n127.0.1.1 kernel\n' >"$cache/etc/hosts"
    printf 'nameserver 127.0.0.1\noptions timeout:1 attempts:1\n' >"$cache/etc/resolv.conf"
    printf 'hosts: files dns\n' >"$cache/etc/nsswitch.conf"
    printf 'http 80/tcp\ndomain 53/udp\n' >"$cache/etc/services"
    printf 'root:x:0:0:root:/:/bin/true\nnobody:x:65534:65534:nobody:/:/bin/true\n' >"$cache/etc/passwd"
    local words=(init="$cache/init" bin/true@/init proc/ sys/ dev/ tmp/ tests/.supports="$cache/supports") program file
    for file in hosts resolv.conf nsswitch.conf services passwd; do words+=("etc/$file=$cache/etc/$file"); done
    for file in "$source"/tests/c/*.c; do
        program=$(basename "$file" .c)
        words+=("tests/$program=$cache/tests/$program")
    done
    python3 "$here/pack.py" "$cache/programs.cpio" "${words[@]}"
}

# machine VERSION: boots it once. The output is appended to cache/VERSION$part.log.
machine() {
    local directory=$cache/linux-$1 log=$cache/$1$part.log begun=$SECONDS
    python3 "$here/pack.py" "$directory/todo.cpio" todo="$directory/todo"
    cat "$cache/programs.cpio" "$directory/modules.cpio" "$directory/todo.cpio" >"$directory/initramfs"
    rm -f "$directory/disk" "$directory/todo.cpio"
    truncate -s 1G "$directory/disk"
    mkfs.ext4 -q -F "$directory/disk"
    "${qemu[@]}" -machine q35 -accel tcg,thread=multi -cpu max -smp 2 -m 1024 -nodefaults \
        -no-reboot -display none -serial stdio -drive "file=$directory/disk,if=virtio,format=raw,cache=unsafe" \
        -kernel "$directory/vmlinuz" -initrd "$directory/initramfs" -append "$append" </dev/null >>"$log" 2>&1 8>&- 9>&- &
    guest=$!
    while kill -0 "$guest" 2>/dev/null; do
        sleep 2
        if [ $(($(date +%s) - $(stat -c %Y "$log"))) -gt "${SILENCE:-1200}" ] ||
            [ $((SECONDS - begun)) -gt "${MACHINE_SECONDS:-21600}" ]; then
            kill -KILL "$guest" 2>/dev/null || true
        fi
    done
    wait "$guest" || say "qemu ended with $?"
    guest=
    rm -f "$directory/disk" "$directory/initramfs"
}

# wanted VERSION: what to run, "BACKEND PROGRAM STAMP"; the stamp is of all that the outcome depends on.
wanted() {
    local file program backend name settings
    settings=$(cat "$cache/linux-$1/modules.cpio" "$cache/linux-$1/vmlinuz" <(echo "$append") | sha256sum)
    for backend in ${backends//,/ }; do
        for file in "$cache/supports" "$source"/tests/c/*.c; do
            name=$(basename "$file" .c)
            program=$name
            case $file in
            "$cache/supports") name=.supports program=../supports ;;
            *)
                if [ "$backend" = auto ]; then
                    case ,${AUTO_PROGRAMS:-backend,loop,submit}, in *,$name,*) ;; *) continue ;; esac
                fi
                case ,${PROGRAMS:-$name}, in *,$name,*) ;; *) continue ;; esac ;;
            esac
            echo "$backend $name $(cat "$cache/tests/$program" <(echo "$settings") | sha256sum | cut -c 1-16)"
        done
    done
}

# keep LOG WANTED: reduces the log to what is wanted and came to its end.
keep() {
    tr -d '\r' <"$1" | awk '
        NR == FNR { wanted[$2 " " $1 " " $3]; next }
        $1 == "@@" && $2 == "kernel" && !named++ { print; next }
        $1 == "@@" && $2 == "begin" { key = $3 " " $4 " " $5; text = $0; inside = key in wanted; next }
        inside { text = text "\n" $0 }
        inside && $1 == "@@" && $2 == "end" { print text; delete wanted[key]; inside = 0 }' "$2" - >"$1.new"
    mv "$1.new" "$1"
}

# left LOG WANTED: what of it did not come to its end yet.
left() {
    tr -d '\r' <"$1" | awk '
        NR == FNR { line[++n] = $0; key[n] = $2 " " $1 " " $3; next }
        $1 == "@@" && $2 == "begin" { now = $3 " " $4 " " $5 }
        $1 == "@@" && $2 == "end" { ended[now] }
        END { for (i = 1; i <= n; i++) if (!(key[i] in ended)) print line[i] }' "$2" -
}

# boot VERSION: runs there what was not run yet.
boot() {
    local version=$1 log=$cache/$1$part.log directory=$cache/linux-$1 before last deaths=0
    wanted "$version" >"$directory/wanted"
    if [ -n "${AGAIN:-}" ]; then rm -f "$log"; fi
    touch "$log"
    keep "$log" "$directory/wanted"
    left "$log" "$directory/wanted" >"$directory/todo"
    while [ -s "$directory/todo" ]; do
        before=$(wc -l <"$directory/todo")
        say "booting $version to run $before of $(wc -l <"$directory/wanted"), see $log"
        machine "$version"
        left "$log" "$directory/wanted" >"$directory/todo"
        [ -s "$directory/todo" ] || break
        last=$(tr -d '\r' <"$log" | grep -a '^@@ \(kernel\|begin\|end\) ' | tail -n 1 || true)
        printf '\n@@ died %s\n' "$last" >>"$log"
        [ "$(wc -l <"$directory/todo")" = "$before" ] || deaths=0
        deaths=$((deaths + 1))
        [ "$deaths" -ge 2 ] || continue
        # Twice in the same program: that counts as its end. Twice in none: there is no going on.
        case $last in
        "@@ begin "*) echo "$last" | sed 's/begin \(.*\) [^ ]*$/end \1 dead 0 s/' >>"$log" ;;
        *) break ;;
        esac
        left "$log" "$directory/wanted" >"$directory/todo"
        deaths=0
    done
}

# ---- What came out.

# summary LOG SKIPPED LEFT: one row per backend; what failed goes to standard error, and what was skipped is appended to SKIPPED:
# "kernel backend|program: test|why".
summary() {
    tr -d '\r' <"$1" | awk -v skipped_file="$2" -v left="$(wc -l <"$3")" '
        $1 == "@@" && $2 == "kernel" { kernel = $3; sub(/-.*/, "", kernel); next }
        $1 == "@@" && $2 == "begin" {
            backend = $4; program = $3; open = program; why = ""; run = failures = skips = 0; failing = 0; note = ""
            if (!(backend in seen)) { seen[backend]; order[++n] = backend }
            next
        }
        $1 == "@@" && $2 == "died" && $3 == "@@" { notes = notes sprintf("  the machine died in %s on %s\n", $5, $6); next }
        $1 == "@@" && $2 == "died" { notes = notes "  the machine died between programs\n"; next }
        $1 == "@@" && $2 == "end" {
            open = ""
            if (program == ".supports") next
            programs[backend]++
            passed[backend] += run - failures
            failed[backend] += failures
            skipped[backend] += skips
            printf "%s", note >skipped_file
            if ($5 == 77 && run == 0) whole[backend]++
            else if ($5 != 0 && !failing) { bad = bad sprintf("  %s: %s ended with %s\n", backend, program, $5); lost[backend]++ }
            next
        }
        $1 == "@@" && $2 == "reason" { inuse[backend] = $3; $1 = $2 = $3 = ""; sub(/^ +/, ""); reason[backend] = $0; next }
        $1 == "@@" && $2 == "problem" { problems = problems "  " $0 "\n"; next }
        /^[0-9]+ run, [0-9]+ failed$/ { run = $1; failures = $3; next } # the last one: a test may run its program again
        $1 == "skipped:" { sub(/^skipped: /, ""); note = note kernel " " backend "|" program "|" $0 "\n"; next }
        $1 == "skipped" && NF == 2 { skips++; note = note kernel " " backend "|" program ": " $2 "|" why "\n"; why = ""; next }
        $1 == "FAILED" { failing = 1; bad = bad "  " backend ": " program ": " $0 "\n"; if (why != "") bad = bad "      " why "\n" }
        { why = $0; sub(/^ +/, "", why) }
        $1 == "ok" || $1 == "FAILED" { why = "" }
        END {
            for (i = 1; i <= n; i++) {
                b = order[i]
                printf "| %s | %s | %d | %d | %d | %d | %s: %s |\n", kernel, b, programs[b] - whole[b], passed[b], failed[b] + lost[b],
                    skipped[b], inuse[b], reason[b]
            }
            if (left > 0) bad = bad "  " left " programs were not run" (open != "" ? ": the machine died in " open : "") "\n"
            if (notes problems != "") printf "%s: notes\n%s%s", kernel, notes, problems >"/dev/stderr"
            if (bad != "") printf "%s: FAILED\n%s", kernel, bad >"/dev/stderr"
            if (bad problems != "") exit 1
        }'
}

# skips FILE: what was skipped, each with its reason and where.
skips() {
    awk -F'|' '
        { key = $2 "|" $3; if (!(key in where)) order[++n] = key; where[key] = where[key] (where[key] == "" ? "" : ", ") $1 }
        END {
            if (n > 0) print "| skipped | why | where |\n| --- | --- | --- |"
            for (i = 1; i <= n; i++) { split(order[i], part, "|"); printf "| %s | %s | %s |\n", part[1], part[2], where[order[i]] }
        }' "$1"
}

# operations LOG...: how each kernel does each operation on the backend that auto chooses.
operations() {
    [ $# -gt 0 ] || return 0
    tr -d '\r' < <(cat "$@") | awk '
        $1 == "@@" && $2 == "kernel" && $3 != last {
            last = name = $3
            sub(/-.*/, "", name)
            heads = heads " " name " |"
            lines = lines " --- |"
            kernel++
        }
        $1 == "@@" && $2 == "begin" { auto = $4 == "auto" }
        $1 == "@@" && $2 == "op" && auto { if (!($3 in known)) { known[$3]; names[++n] = $3 } how[$3, kernel] = $4 }
        END {
            print "| operation |" heads "\n| --- |" lines
            for (i = 1; i <= n; i++) {
                row = "| " names[i] " |"
                for (k = 1; k <= kernel; k++) row = row " " how[names[i], k] " |"
                print row
            }
        }'
}

{ # read as a whole, so that the file may be edited while it runs
# Two of these may run side by side, but not fetch and compile, nor run the same kernel.
exec 9>"$cache/lock"
flock 9
apt_root "$cache/apt" bullseye bullseye-security bookworm bookworm-security bookworm-backports trixie trixie-backports sid
prepare_qemu
prepare_programs
flock -u 9
status=0
logs=()
guest=
append="console=ttyS0 quiet loglevel=2 panic=-1 mitigations=off"
append+=" UPCALL_TEST_SECONDS=${SECONDS_PER_TEST:-600} UPCALL_TEST_SLOWNESS=${SLOWNESS:-16}"
append+="${TESTS:+ TESTS=$TESTS}"
skipped=$(mktemp)
trap '[ -z "$guest" ] || kill -KILL "$guest" 2>/dev/null; rm -f "$skipped"' EXIT
trap 'exit 1' INT TERM HUP
rows='| kernel | asked for | programs | passed | failed | skipped | in use, and why |
| --- | --- | --- | --- | --- | --- | --- |
'
for wanted; do
    flock 9
    version=$(version_of "$wanted")
    if [ -z "$version" ] || ! fetch_kernel "$version"; then
        rows+="| $wanted | MISSING: Debian's archive did not give it | | | | | |"$'\n'
        status=1
        flock -u 9
        continue
    fi
    flock -u 9
    exec 8>"$cache/linux-$version/lock"
    flock 8
    boot "$version"
    exec 8>&-
    logs+=("$cache/$version$part.log")
    row=$(summary "$cache/$version$part.log" "$skipped.part" "$cache/linux-$version/todo") || status=1
    cat "$skipped.part" >>"$skipped" 2>/dev/null || true
    rm -f "$skipped.part"
    rows+=$row$'\n'
    printf '%s\n' "$row" >&2
done
{
    printf '%s\n' "$rows"
    skips "$skipped"
    echo
    operations "${logs[@]}"
} | tee "$cache/results$part.md"
exit $status
}
