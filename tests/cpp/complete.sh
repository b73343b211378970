#!/bin/sh
# Every operation of the library is a member of upcall::loop, and tried by operations.cpp: complete.sh SOURCE_DIR
set -u
symbols=$1/tests/symbols.txt
header=$1/include/upcall.hpp
tests=$1/tests/cpp/operations.cpp

missing=0 count=0
for operation in $(sed -n 's/^upcall_op_//p' "$symbols" | grep -v '^name$'); do
    count=$((count + 1))
    grep -q "[{ ]upcall_op_$operation(" "$header" || { echo "upcall.hpp does not have $operation()"; missing=1; }
    grep -q "loop\.$operation[(<]\|[ *]l\.$operation(" "$tests" || { echo "operations.cpp does not try $operation()"; missing=1; }
done
echo "$count operations"
[ "$count" -gt 50 ] && exit "$missing"
exit 1
