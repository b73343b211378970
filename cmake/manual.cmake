# The manual. The target `upcall_manual` makes the site, manual/html in the build directory, where Doxygen is installed; the manual
# pages are in docs/man and only have to be installed.
find_program(UPCALL_DOXYGEN doxygen)
find_file(UPCALL_DOXYGEN_STYLE doxygen-awesome.css PATHS /usr/share /usr/local/share PATH_SUFFIXES doxygen-awesome-css)

set(UPCALL_MANUAL_DIR "${PROJECT_BINARY_DIR}/manual")
set(UPCALL_STYLESHEETS "\"${PROJECT_SOURCE_DIR}/docs/manual/manual.css\"")
if(UPCALL_DOXYGEN_STYLE)
    set(UPCALL_STYLESHEETS "\"${UPCALL_DOXYGEN_STYLE}\" ${UPCALL_STYLESHEETS}")
endif()
set(UPCALL_MANUAL_PICTURES "")
if(IS_DIRECTORY "${PROJECT_SOURCE_DIR}/docs/bench")
    set(UPCALL_MANUAL_PICTURES "\"${PROJECT_SOURCE_DIR}/docs/bench\"")
endif()
configure_file(docs/manual/Doxyfile.in manual/Doxyfile @ONLY)
if(UPCALL_DOXYGEN AND PROJECT_IS_TOP_LEVEL)
    add_custom_target(upcall_manual
        COMMAND ${CMAKE_COMMAND} -E rm -rf "${UPCALL_MANUAL_DIR}/html"
        COMMAND ${UPCALL_DOXYGEN} "${UPCALL_MANUAL_DIR}/Doxyfile"
        COMMENT "Making the manual: ${UPCALL_MANUAL_DIR}/html/index.html"
        VERBATIM)
endif()

if(UPCALL_INSTALL)
    install(DIRECTORY docs/man/ DESTINATION ${CMAKE_INSTALL_MANDIR}/man3 COMPONENT manual FILES_MATCHING PATTERN "*.3")
    install(DIRECTORY docs/man/ DESTINATION ${CMAKE_INSTALL_MANDIR}/man7 COMPONENT manual FILES_MATCHING PATTERN "*.7")
    # Each function and type has its family's page under its own name.
    set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS docs/manual/families.txt)
    file(STRINGS docs/manual/families.txt families REGEX "^[a-z]")
    file(REMOVE_RECURSE "${UPCALL_MANUAL_DIR}/man3")
    foreach(family IN LISTS families)
        string(REGEX MATCH "^([a-z_]+)[|][^|]*[|](.*)$" family "${family}")
        set(page upcall_${CMAKE_MATCH_1})
        string(REPLACE " " ";" symbols "${CMAKE_MATCH_2}")
        foreach(symbol IN LISTS symbols)
            if(NOT symbol MATCHES "^(upcall|UPCALL)_")
                string(PREPEND symbol upcall_op_)
            endif()
            if(symbol MATCHES "^upcall_" AND NOT symbol STREQUAL page)
                file(WRITE "${UPCALL_MANUAL_DIR}/man3/${symbol}.3" ".so man3/${page}.3\n")
            endif()
        endforeach()
    endforeach()
    install(DIRECTORY "${UPCALL_MANUAL_DIR}/man3/" DESTINATION ${CMAKE_INSTALL_MANDIR}/man3 COMPONENT manual)
endif()
