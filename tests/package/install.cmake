# Installs the build tree BUILD to ROOT/first and moves that to ROOT/moved: LIBDIR, SONAME and VERSION are as in CMakeLists.txt.
cmake_minimum_required(VERSION 3.22)
file(REMOVE_RECURSE ${ROOT})
function(install_to folder)
    execute_process(COMMAND ${CMAKE_COMMAND} --install ${BUILD} --config "${CONFIG}" --prefix ${ROOT}/${folder} ${ARGN}
        COMMAND_ERROR_IS_FATAL ANY)
endfunction()
function(expect what wanted)
    list(SORT ARGN)
    if(NOT "${ARGN}" STREQUAL "${wanted}")
        message(SEND_ERROR "${what}: wanted ${wanted}, found ${ARGN}")
    endif()
endfunction()
install_to(first)
file(RENAME ${ROOT}/first ${ROOT}/moved)

# Nothing that is read by a person or a tool may know where it was built or first installed.
file(GLOB_RECURSE texts ${ROOT}/moved/*.cmake ${ROOT}/moved/*.pc ${ROOT}/moved/*.h*)
foreach(text IN LISTS texts)
    file(STRINGS ${text} lines)
    foreach(place ${BUILD} ${ROOT})
        string(FIND "${lines}" "${place}" found)
        if(NOT found EQUAL -1)
            message(SEND_ERROR "${text} names ${place}")
        endif()
    endforeach()
endforeach()
execute_process(COMMAND ${READELF} --dynamic ${ROOT}/moved/${LIBDIR}/${SONAME} OUTPUT_VARIABLE dynamic COMMAND_ERROR_IS_FATAL ANY)
if(dynamic MATCHES "R(UN)?PATH")
    message(SEND_ERROR "${SONAME} has a path to search: ${dynamic}")
endif()

# The linker is led to what the loader will look for, and that to the file.
file(READ_SYMLINK ${ROOT}/moved/${LIBDIR}/libupcall.so link)
expect("libupcall.so leads to" ${SONAME} ${link})
file(READ_SYMLINK ${ROOT}/moved/${LIBDIR}/${SONAME} link)
expect("${SONAME} leads to" libupcall.so.${VERSION} ${link})

# All of it, and the part that programs need when they run.
file(GLOB_RECURSE files RELATIVE ${ROOT}/moved ${ROOT}/moved/*)
if(NOT "share/man/man3/upcall_submit.3" IN_LIST files OR NOT "share/man/man7/upcall.7" IN_LIST files)
    message(SEND_ERROR "no manual pages: ${files}")
endif()
list(FILTER files EXCLUDE REGEX "^share/man/man[37]/upcall[a-z0-9_]*\\.[37]$")
set(adapters ares curl glib hiredis openssl pq uv watch)
list(TRANSFORM adapters REPLACE "(.+)" "include/upcall_\\1.h")
set(wanted include/upcall.h include/upcall.hpp ${adapters} ${LIBDIR}/cmake/upcall/upcallConfig.cmake
    ${LIBDIR}/cmake/upcall/upcallConfigVersion.cmake ${LIBDIR}/cmake/upcall/upcallTargets.cmake ${LIBDIR}/libupcall.a
    ${LIBDIR}/libupcall.so ${LIBDIR}/${SONAME} ${LIBDIR}/libupcall.so.${VERSION} ${LIBDIR}/pkgconfig/upcall.pc
    share/doc/upcall/LICENSE share/doc/upcall/LICENSE-APACHE share/doc/upcall/LICENSE-MIT)
expect("all files" "${wanted}" ${files})
install_to(runtime --component runtime)
file(GLOB_RECURSE files RELATIVE ${ROOT}/runtime ${ROOT}/runtime/*)
expect("files of the component runtime" "${LIBDIR}/${SONAME};${LIBDIR}/libupcall.so.${VERSION}" ${files})
