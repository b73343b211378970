# Debian packages by cpack: libupcall<SOVERSION> and libupcall-dev, from the install rules. With the prefix /usr the libraries
# go to the multiarch folder (GNUInstallDirs); the preset `deb` has it.
set(CPACK_GENERATOR DEB)
set(CPACK_COMPONENTS_ALL runtime runtime_doc development development_doc)
foreach(component runtime development)
    string(TOUPPER ${component} name)
    set(CPACK_COMPONENT_${name}_GROUP ${component})
    set(CPACK_COMPONENT_${name}_DOC_GROUP ${component})
endforeach()
set(CPACK_DEB_COMPONENT_INSTALL ON)
set(CPACK_POST_BUILD_SCRIPTS "${PROJECT_SOURCE_DIR}/cmake/debian/amend.cmake")
set(CPACK_UPCALL_MULTIARCH FALSE)
if(CMAKE_LIBRARY_ARCHITECTURE AND CMAKE_INSTALL_LIBDIR MATCHES "/${CMAKE_LIBRARY_ARCHITECTURE}$")
    set(CPACK_UPCALL_MULTIARCH TRUE)
endif()

# 0upcall1 sorts before any revision of a distribution's own package. Who builds is asked for as Debian's tools do.
set(CPACK_DEBIAN_PACKAGE_RELEASE 0upcall1)
set(CPACK_PACKAGE_CONTACT "The Upcall developers <upcall@localhost>")
if(DEFINED ENV{DEBFULLNAME} AND DEFINED ENV{DEBEMAIL})
    set(CPACK_PACKAGE_CONTACT "$ENV{DEBFULLNAME} <$ENV{DEBEMAIL}>")
endif()

set(runtime libupcall${UPCALL_SOVERSION})
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_SOURCE upcall)
set(CPACK_DEBIAN_PACKAGE_CONTROL_STRICT_PERMISSION ON)
set(CPACK_DEBIAN_DEBUGINFO_PACKAGE ON) # strips what is in libupcall.so

set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "") # each package has its own, its description's first line
set(about "asynchronous I/O on io_uring or epoll")
set(more "Programs submit operations on files, sockets and pipes, poll a loop, and are\n\
called back when each is done. It runs on io_uring where the kernel and the\n\
sandbox allow it, on epoll and a few threads elsewhere, with the same results.\n.\n")
set(CPACK_DEBIAN_RUNTIME_PACKAGE_NAME ${runtime})
set(CPACK_DEBIAN_RUNTIME_PACKAGE_SECTION libs)
set(CPACK_DEBIAN_RUNTIME_PACKAGE_SHLIBDEPS ON)
set(CPACK_DEBIAN_RUNTIME_DESCRIPTION "${about} - shared library\n${more}This package has the shared library.")
set(CPACK_DEBIAN_DEVELOPMENT_PACKAGE_NAME libupcall-dev)
set(CPACK_DEBIAN_DEVELOPMENT_PACKAGE_SECTION libdevel)
set(CPACK_DEBIAN_DEVELOPMENT_PACKAGE_DEPENDS
    "${runtime} (= ${PROJECT_VERSION}-${CPACK_DEBIAN_PACKAGE_RELEASE}), libc6-dev | libc-dev")
set(CPACK_DEBIAN_DEVELOPMENT_DESCRIPTION "${about} - development files\n${more}\
This package has the headers for C and C++20, the static library, and what\n\
CMake and pkg-config look for.")

# What a program linked with this library depends on: a patch release adds no function.
set(control "${PROJECT_BINARY_DIR}/debian")
set(since ${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR}.0)
file(WRITE "${control}/shlibs" "libupcall ${UPCALL_SOVERSION} ${runtime} (>= ${since})\n")
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS tests/symbols.txt)
file(STRINGS tests/symbols.txt functions)
list(TRANSFORM functions REPLACE "(.+)" " \\1@Base ${since}\n")
string(CONCAT functions ${functions})
file(WRITE "${control}/symbols" "${upcall_SONAME} ${runtime} #MINVER#\n* Build-Depends-Package: libupcall-dev\n${functions}")
file(WRITE "${control}/triggers" "activate-noawait ldconfig\n")
set(CPACK_DEBIAN_RUNTIME_PACKAGE_CONTROL_EXTRA "${control}/shlibs;${control}/symbols;${control}/triggers")

# Only packages have these: a plain `cmake --install` leaves them out.
find_program(UPCALL_GZIP gzip)
if(UPCALL_GZIP)
    string(TIMESTAMP date "%a, %d %b %Y %H:%M:%S +0000" UTC)
    file(WRITE "${control}/changelog.Debian" "upcall (${PROJECT_VERSION}-${CPACK_DEBIAN_PACKAGE_RELEASE}) unstable; urgency=medium\n
  * Built by CPack; the changes are in changelog.gz.\n
 -- ${CPACK_PACKAGE_CONTACT}  ${date}\n")
    configure_file(CHANGELOG.md "${control}/changelog" COPYONLY)
    execute_process(COMMAND ${UPCALL_GZIP} --force --best --no-name changelog changelog.Debian
        WORKING_DIRECTORY "${control}" COMMAND_ERROR_IS_FATAL ANY)
    file(REMOVE_RECURSE "${control}/man3" "${control}/man7")
    file(COPY docs/man/ "${UPCALL_MANUAL_DIR}/man3/" DESTINATION "${control}/man3" FILES_MATCHING PATTERN "*.3")
    file(COPY docs/man/ DESTINATION "${control}/man7" FILES_MATCHING PATTERN "*.7")
    execute_process(COMMAND ${UPCALL_GZIP} --recursive --best --no-name man3 man7 WORKING_DIRECTORY "${control}"
        COMMAND_ERROR_IS_FATAL ANY)
    install(DIRECTORY "${control}/man3" "${control}/man7" DESTINATION ${CMAKE_INSTALL_MANDIR} COMPONENT development_doc
        EXCLUDE_FROM_ALL)
    foreach(component runtime development)
        string(TOUPPER ${component} name)
        install(FILES "${control}/changelog.gz" "${control}/changelog.Debian.gz" cmake/debian/copyright
            DESTINATION ${CMAKE_INSTALL_DATAROOTDIR}/doc/${CPACK_DEBIAN_${name}_PACKAGE_NAME}
            COMPONENT ${component}_doc EXCLUDE_FROM_ALL)
    endforeach()
endif()
include(CPack)
