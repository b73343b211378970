# ---- oracle.<backend>: the oracle (oracle/oracle.h) sees what it is there to see.
add_executable(oracle oracle/oracle.c)
set_target_properties(oracle PROPERTIES C_STANDARD 11 C_EXTENSIONS OFF COMPILE_WARNING_AS_ERROR ON)
target_compile_definitions(oracle PRIVATE _GNU_SOURCE)
target_compile_options(oracle PRIVATE -Wall -Wextra -Wshadow)
target_link_libraries(oracle PRIVATE upcall::shared Threads::Threads)
foreach(backend io_uring epoll)
    add_test(NAME oracle.${backend} COMMAND oracle)
    set_tests_properties(oracle.${backend} PROPERTIES ENVIRONMENT UPCALL_BACKEND=${backend} LABELS races
        TIMEOUT ${UPCALL_TEST_TIMEOUT} SKIP_RETURN_CODE 77)
endforeach()
