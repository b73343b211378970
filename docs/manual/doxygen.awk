# Shows the project's files to Doxygen as it wants them, so that they stay readable as they are. Lines keep their numbers.
#
#     awk -v families=families.txt -f doxygen.awk FILE
#
# upcall.h, upcall.hpp   each symbol enters the group of its family; "Since 0.1." becomes a section; <dirent.h> is no HTML
# families.txt           the groups
# *.md                   headings get the names that links use on the web; links to pages become references

BEGIN {
    while ((getline line < families) > 0)
        if (line !~ /^#/) {
            split(line, field, "|")
            count = split(field[3], names, " ")
            for (i = 1; i <= count; i++) {
                if (names[i] ~ /^(upcall|UPCALL)_/)
                    group_of[names[i]] = field[1]
                else
                    group_of["upcall_op_" names[i]] = group_of["UPCALL_OP_" toupper(names[i])] = field[1]
            }
        }
}

FNR == 1 {
    stem = FILENAME
    sub(/.*\//, "", stem)
    is_header = stem ~ /\.hp*$/
    is_page = stem ~ /\.md$/
    is_index = FILENAME ~ /docs\/README\.md$/
    sub(/\.[a-z]*$/, "", stem)
    in_code = 0
}

# ---- families.txt ----

!is_header && !is_page {
    split($0, field, "|")
    count = split(field[3], names, " ")
    list = field[1] ~ /^op_/ ? "Operations:" : "Symbols:"
    for (i = 1; i <= count; i++)
        if (names[i] ~ /^[a-z]/)
            list = list (list ~ /:$/ ? " " : ", ") names[i]
    print /^#/ ? "" : "/** @defgroup api_" field[1] " " field[2] "\n * @brief " list " */"
    next
}

# ---- headers: a comment is kept back until the symbol below it is known ----

function symbol(line) {
    if (line ~ /^#define /)
        line = substr(line, 9)
    else if (line ~ /^typedef .*\(\*/)
        sub(/^.*\(\*/, "", line)
    else if (line ~ /^typedef struct/)
        sub(/^typedef struct /, "", line)
    else if (line ~ /^typedef /)
        sub(/^typedef [^ ]+ /, "", line)
    else
        match(line, /[a-z0-9_]+\(/) && line = substr(line, RSTART)
    match(line, /^[A-Za-z0-9_]+/)
    return substr(line, 1, RLENGTH)
}

# Its first paragraph is what the lists show.
function flush(group,   i) {
    if (held > 1 && hold[1] ~ /^\/\*\*$/ && hold[2] !~ /@/)
        sub(/^ \* /, " * @brief ", hold[2])
    for (i = 1; i <= held; i++) {
        if (i == held && group != "")
            sub(/ *\*\/$/, (i == 1 ? "" : " *") " @ingroup api_" group " */", hold[i])
        print hold[i]
    }
    held = 0
}

# ---- upcall.hpp: what makes co_await work is no part of its manual. Everything else needs documentation ----

is_header && /^namespace detail \{/ { in_detail = 1 }

in_detail {
    print ""
    in_detail = !/^\} \/\/ namespace detail/
    next
}

is_header { sub(/^ +friend .*/, "") }
is_header && /^ +class iterator \{/ { in_iterator = 1 }
is_header && /^ +\};/ { in_iterator = 0 }

is_header && !is_documented && /^ +[A-Za-z]/ &&
    (/= delete;/ || / (value_type|difference_type|promise_type) = / || / needs_token = / || /operator=\([a-z_]+ &&/ || /[a-z]\([a-z_]+ &&(other)?\)/ ||
     / (start|cancel|failed|finish|finish_result|make|was_cancelled)\(/ || /^ +explicit (next_value|multishot_end|scope_end|with_result)\(/ ||
     in_iterator && /^        (explicit |bool |const |using |iterator)/) {
    sub(/[A-Za-z]/, "/** @private */ &")
}

# A field's first paragraph is what the lists show.
is_header && before ~ /^ +\/\*\*$/ && !/@/ { sub(/\* /, "* @brief ") }
is_header { before = $0 }

is_header { is_documented = /\*\/$/ }

is_header {
    if ($0 ~ /^ *(\/\*\*| \*)/) {
        gsub(/<[a-z]+(\/[a-z]+)?\.h>/, "\\\\&")
        sub(/Since 0\.1\./, "@since 0.1.")
    }
    sub(/^inline namespace v[0-9_]+ \{/, "")
    sub(/^\} \/\/ namespace v[0-9_]+/, "")
    if (held > 0 && hold[held] ~ /\*\/$/) {
        name = symbol($0)
        flush(name in group_of ? group_of[name] : "")
    }
    if ($0 ~ /^\/\*\*/ || held > 0)
        hold[++held] = $0
    else
        print
    next
}

# ---- pages ----

function slug(text) {
    text = tolower(text)
    gsub(/[^a-z0-9 _-]/, "", text)
    gsub(/ /, "-", text)
    return text
}

/^ *```/ { in_code = !in_code }

in_code {
    print
    next
}

# The index's headings are no branches of the tree.
/^## / && is_index {
    print "<h2>" substr($0, 4) "</h2>"
    next
}

# Doxygen itself would close the division at each block of code.
/^<\/?div/ {
    print "@htmlonly[block]" $0 "@endhtmlonly"
    next
}

# Doxygen makes the list of contents.
/^- \[[^]]*\]\(#[^)]*\)$/ {
    print ""
    next
}

/^# / && !is_index {
    print $0 " {#" stem "}"
    wants_contents = 1
    next
}

wants_contents && /^$/ {
    print stem ~ /^(from_|features)/ ? "" : "\n[TOC]\n" # what stands side by side needs the room
    wants_contents = 0
    next
}

/^##+ / && !is_index {
    title = $0
    sub(/^#+ /, "", title)
    print $0 " {#" stem "-" slug(title) "}"
    next
}

# A link may go over the end of a line.
{
    if (begun != "") {
        sub(/^ +/, "")
        $0 = begun " " $0
        begun = ""
    }
    if ($0 !~ /^\|/ && /\[[^]]*$/) {
        begun = $0
        next
    }
}

{
    # [text](page.md), [text](page.md#part), [text](#part); in the index a page becomes a branch of the tree.
    while (match($0, /\[[^]]*\]\(([a-z_.\/]*\.md)?(#[a-z0-9_-]+)?\)/)) {
        link = substr($0, RSTART, RLENGTH)
        text = link
        sub(/\]\(.*/, "", text)
        text = substr(text, 2)
        target = link
        sub(/.*\]\(/, "", target)
        sub(/\)$/, "", target)
        part = ""
        if (match(target, /#.*/)) {
            part = "-" substr(target, RSTART + 1)
            target = substr(target, 1, RSTART - 1)
        }
        page = target == "" ? stem : target
        sub(/.*\//, "", page)
        sub(/\.md$/, "", page)
        match($0, /\[[^]]*\]\(([a-z_.\/]*\.md)?(#[a-z0-9_-]+)?\)/)
        if (is_index && /^- / && part == "")
            new = "@subpage " page " \"" text "\""
        else
            new = "@ref " page part " \"" text "\""
        $0 = substr($0, 1, RSTART - 1) new substr($0, RSTART + RLENGTH)
    }
    # Doxygen knows bold code only as HTML.
    while (match($0, /\*\*[^*]*`[^*]*\*\*/))
        $0 = substr($0, 1, RSTART - 1) "<b>" substr($0, RSTART + 2, RLENGTH - 4) "</b>" substr($0, RSTART + RLENGTH)
    # Pictures are found by their names.
    gsub(/\]\(bench\//, "](")
    print
}
