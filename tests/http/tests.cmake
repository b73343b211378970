# ---- http.<what>.<backend>: c_examples/http_server.c.
find_package(Python3 3.10 COMPONENTS Interpreter)
set(http ${CMAKE_CURRENT_LIST_DIR})

# add_http_test(<name> <labels> COMMAND ...) registers http.<name>.<backend> for both backends.
function(add_http_test name labels)
    cmake_parse_arguments(PARSE_ARGV 2 arg "" "" COMMAND)
    foreach(backend io_uring epoll)
        add_test(NAME ${name}.${backend} COMMAND ${arg_COMMAND})
        set_tests_properties(${name}.${backend} PROPERTIES ENVIRONMENT "UPCALL_BACKEND=${backend}"
            LABELS "${labels};${backend}" TIMEOUT ${UPCALL_TEST_TIMEOUT} SKIP_RETURN_CODE 77)
    endforeach()
endfunction()

if(Python3_FOUND)
    set(python ${Python3_EXECUTABLE} -B)
else()
    set(python sh -c "echo 'python3 (3.10 or newer) is not installed' && exit 77" sh)
endif()
add_http_test(http.server http COMMAND ${python} ${http}/server.py $<TARGET_FILE:http_server>)
add_http_test(http.walk http COMMAND ${python} ${http}/server.py $<TARGET_FILE:http_server> --walk Files)
add_http_test(http.wrk http COMMAND ${python} ${http}/others.py wrk $<TARGET_FILE:http_server>)
add_http_test(http.browser http COMMAND ${python} ${http}/others.py chromium $<TARGET_FILE:http_server>)

if(NOT UPCALL_RUST_TARGET) # a library that is instrumented itself goes into programs that are, too
    add_test(NAME http.sanitized.build COMMAND sh ${http}/sanitized.sh ${CMAKE_C_COMPILER} ${PROJECT_SOURCE_DIR}
        ${UPCALL_LIB_DIR} ${CMAKE_CURRENT_BINARY_DIR}/http_server_sanitized)
    set_tests_properties(http.sanitized.build PROPERTIES LABELS "http;sanitizer;package" FIXTURES_SETUP http_sanitized TIMEOUT 300
        SKIP_RETURN_CODE 77)
    add_http_test(http.sanitized "http;sanitizer;package"
        COMMAND ${python} ${http}/server.py ${CMAKE_CURRENT_BINARY_DIR}/http_server_sanitized Connections Errors Limits Stop)
    set_tests_properties(http.sanitized.io_uring http.sanitized.epoll PROPERTIES FIXTURES_REQUIRED http_sanitized)
endif()

# ---- http.fuzz: random bytes for http.h. So many runs, not so much time.
find_program(UPCALL_TEST_clang clang)
if(UPCALL_TEST_clang)
    add_test(NAME http.fuzz COMMAND sh ${http}/fuzz.sh ${UPCALL_TEST_clang} ${CMAKE_CURRENT_BINARY_DIR}/http_fuzz ${http})
else()
    add_test(NAME http.fuzz COMMAND sh -c "echo 'clang is not installed' && exit 77")
endif()
set_tests_properties(http.fuzz PROPERTIES LABELS "http;fuzz" TIMEOUT 600 SKIP_RETURN_CODE 77)

# ---- python.<example>.<backend>: the C ABI from another language.
if(NOT UPCALL_RUST_TARGET)
    add_http_test(python.read_files "python;package"
        COMMAND ${python} ${PROJECT_SOURCE_DIR}/python_examples/test_read_files.py ${PROJECT_SOURCE_DIR}/docs/languages.md)
    foreach(backend io_uring epoll)
        set_property(TEST python.read_files.${backend} APPEND PROPERTY ENVIRONMENT UPCALL_LIBRARY=${upcall_SHARED_LIBRARY})
    endforeach()
endif()
