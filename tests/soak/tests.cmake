# ---- soak.<backend>: everything at once, for ten seconds. The long run is `make soak`.
add_executable(soak soak/soak.c)
set_target_properties(soak PROPERTIES C_STANDARD 11 C_EXTENSIONS OFF COMPILE_WARNING_AS_ERROR ON)
target_compile_definitions(soak PRIVATE _GNU_SOURCE)
target_compile_options(soak PRIVATE -O2 -Wall -Wextra -Wshadow)
target_link_libraries(soak PRIVATE upcall::shared Threads::Threads)
foreach(backend io_uring epoll)
    add_test(NAME soak.${backend} COMMAND soak --backend ${backend} --seconds 10 --round 2)
    set_tests_properties(soak.${backend} PROPERTIES LABELS "races;${backend}" PROCESSORS 2
        TIMEOUT ${UPCALL_TEST_TIMEOUT} SKIP_RETURN_CODE 77)
endforeach()
