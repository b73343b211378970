# Installs the build tree BUILD to ROOT/first and moves that to ROOT/moved.
file(REMOVE_RECURSE ${ROOT})
execute_process(COMMAND ${CMAKE_COMMAND} --install ${BUILD} --config "${CONFIG}" --prefix ${ROOT}/first
    COMMAND_ERROR_IS_FATAL ANY)
file(RENAME ${ROOT}/first ${ROOT}/moved)

# Nothing that is read by a person or a tool may know where it was built or first installed.
file(GLOB_RECURSE texts ${ROOT}/moved/*.cmake ${ROOT}/moved/*.pc ${ROOT}/moved/*.h)
foreach(text IN LISTS texts)
    file(STRINGS ${text} lines)
    foreach(place ${BUILD} ${ROOT})
        string(FIND "${lines}" "${place}" found)
        if(NOT found EQUAL -1)
            message(FATAL_ERROR "${text} names ${place}")
        endif()
    endforeach()
endforeach()
