# What find_package answers to versions and components, of the tree INSTALLED and of trees where something was left out. The
# project that asks is CONSUMER; WORK is for scratch; VERSION and LIBDIR as in CMakeLists.txt.
file(REMOVE_RECURSE ${WORK})
function(ask prefix request answer)
    file(REMOVE_RECURSE ${WORK}/build)
    execute_process(COMMAND ${CMAKE_COMMAND} -S ${CONSUMER} -B ${WORK}/build -DCMAKE_C_COMPILER=${COMPILER}
            -DCMAKE_PREFIX_PATH=${prefix} "-DREQUEST=${request}" RESULT_VARIABLE status OUTPUT_VARIABLE said ERROR_VARIABLE errors)
    string(REGEX REPLACE "[ \n]+" " " said "${said}${errors}") # CMake fills its lines
    string(FIND "${said}" "${answer}" found)
    if(found EQUAL -1 OR NOT status EQUAL STATUS)
        message(SEND_ERROR "find_package(upcall ${request}): wanted ${STATUS} and '${answer}', found ${status} and: ${said}")
    else()
        message(STATUS "find_package(upcall ${request}): ${answer}")
    endif()
endfunction()

string(REGEX MATCH "^[0-9]+\\.[0-9]+" minor ${VERSION})
set(STATUS 0)
ask(${INSTALLED} "${minor};COMPONENTS;shared;static;cpp" "upcall::upcall is upcall::shared, static: TRUE, shared: TRUE, cpp: TRUE")
ask(${INSTALLED} "${minor}...<${minor}.99" "upcall::upcall is upcall::shared")
ask(${INSTALLED} "${minor};OPTIONAL_COMPONENTS;turbo" "upcall::upcall is upcall::shared")

# With the reason, and with what is there instead.
set(STATUS 1)
ask(${INSTALLED} 99.0 "compatible with requested version \"99.0\"")
ask(${INSTALLED} 99.0 "upcallConfig.cmake, version: ${VERSION}")
ask(${INSTALLED} "${minor};COMPONENTS;shared;turbo" "upcall has no component turbo; installed are: shared static cpp")

file(COPY ${INSTALLED}/ DESTINATION ${WORK}/no_static)
file(REMOVE ${WORK}/no_static/${LIBDIR}/libupcall.a)
ask(${WORK}/no_static "COMPONENTS;static" "upcall has no component static; installed are: shared cpp")
file(COPY ${INSTALLED}/ DESTINATION ${WORK}/only_static)
file(REMOVE ${WORK}/only_static/${LIBDIR}/libupcall.so.${VERSION} ${WORK}/only_static/include/upcall.hpp)
ask(${WORK}/only_static "COMPONENTS;shared;cpp" "upcall has no component shared cpp; installed are: static")
set(STATUS 0)
ask(${WORK}/no_static "OPTIONAL_COMPONENTS;static" "upcall::upcall is upcall::shared, static: FALSE")
ask(${WORK}/only_static "" "upcall::upcall is upcall::static")
