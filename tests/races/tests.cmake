# ---- races.<program>.<backend>: two things at the same moment, again and again; each program says what must hold. The long
# run is `make test-races`.
file(GLOB sources CONFIGURE_DEPENDS races/*.c)
foreach(source IN LISTS sources)
    cmake_path(GET source STEM name)
    set(program races.${name})
    add_executable(${program} ${source})
    set_target_properties(${program} PROPERTIES C_STANDARD 11 C_EXTENSIONS OFF COMPILE_WARNING_AS_ERROR ON)
    target_compile_definitions(${program} PRIVATE _GNU_SOURCE)
    target_compile_options(${program} PRIVATE -O2 -Wall -Wextra -Wshadow)
    target_link_libraries(${program} PRIVATE upcall::shared Threads::Threads)
    foreach(backend io_uring epoll)
        add_test(NAME ${program}.${backend} COMMAND ${program} --count 10000)
        set_tests_properties(${program}.${backend} PROPERTIES ENVIRONMENT UPCALL_BACKEND=${backend}
            LABELS "races;${backend}" PROCESSORS 2 TIMEOUT ${UPCALL_TEST_TIMEOUT} SKIP_RETURN_CODE 77)
    endforeach()
endforeach()
