# The programs each consumer builds, one per target, and what is expected of them.
enable_testing()
find_program(READELF readelf REQUIRED)

foreach(library upcall shared static)
    set(program with_${library})
    add_executable(${program} ${CMAKE_CURRENT_LIST_DIR}/app.c)
    target_compile_definitions(${program} PRIVATE VERSION="${WANTED_VERSION}")
    target_link_libraries(${program} PRIVATE upcall::${library})
    add_test(NAME ${library} COMMAND ${program})
    add_test(NAME ${library}.needs COMMAND ${READELF} -d $<TARGET_FILE:${program}>)
endforeach()
set_tests_properties(upcall.needs shared.needs PROPERTIES
    PASS_REGULAR_EXPRESSION "NEEDED[^\n]*\\[libupcall\\.so\\.[0-9.]+\\]")
set_tests_properties(static.needs PROPERTIES FAIL_REGULAR_EXPRESSION "libupcall")

# The C++ header, where there is a compiler for it.
include(CheckLanguage)
check_language(CXX)
if(CMAKE_CXX_COMPILER)
    enable_language(CXX)
    add_executable(with_cpp ${CMAKE_CURRENT_LIST_DIR}/app.cpp)
    target_link_libraries(with_cpp PRIVATE upcall::cpp)
    add_test(NAME cpp COMMAND with_cpp)
endif()
