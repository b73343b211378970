# ---- deb.<what>: the Debian packages, made and installed as their user does. installing: docs/installing.md, word for word.
set(package ${CMAKE_CURRENT_LIST_DIR})
set(packages ${CMAKE_CURRENT_BINARY_DIR}/deb)
set(throwaway sh ${package}/throwaway.sh ${PROJECT_SOURCE_DIR} bash)
if(NOT UPCALL_RUST_TARGET AND NOT CMAKE_BUILD_TYPE STREQUAL "Debug") # cargo has not built the library of a release there
    add_package_test(paths sh ${package}/paths.sh ${PROJECT_SOURCE_DIR} ${cargo_home} ${sysroot}
        ${upcall_SHARED_LIBRARY} ${upcall_STATIC_LIBRARY})
    add_package_test(deb.build sh ${package}/deb_build.sh ${PROJECT_SOURCE_DIR} ${packages} ${UPCALL_CARGO_TARGET_DIR})
    add_package_test(deb.contents bash ${package}/deb_contents.sh ${packages} ${PROJECT_VERSION} ${UPCALL_SOVERSION}
        ${CMAKE_LIBRARY_ARCHITECTURE} ${CMAKE_CURRENT_SOURCE_DIR}/symbols.txt)
    add_package_test(deb.lintian sh ${package}/deb_lintian.sh ${packages})
    add_package_test(deb.install ${throwaway} ${package}/deb_install.sh ${packages} ${CMAKE_CURRENT_SOURCE_DIR}
        ${PROJECT_VERSION} ${UPCALL_SOVERSION})
    set_tests_properties(deb.build PROPERTIES FIXTURES_SETUP deb RESOURCE_LOCK cargo)
    set_tests_properties(deb.contents deb.lintian deb.install PROPERTIES FIXTURES_REQUIRED deb)
    add_package_test(installing ${throwaway} ${package}/installing.sh ${PROJECT_SOURCE_DIR} ${UPCALL_CARGO_TARGET_DIR}
        ${PROJECT_VERSION})
    set_tests_properties(installing PROPERTIES RESOURCE_LOCK cargo)
endif()
add_package_test(licences sh ${package}/licences.sh ${PROJECT_SOURCE_DIR}/cmake/debian/copyright ${UPCALL_CARGO}
    --locked --manifest-path ${PROJECT_SOURCE_DIR}/Cargo.toml)

# ---- cargo_c: [package.metadata.capi] in Cargo.toml, where cargo-c is installed. It builds the library once more.
add_package_test(cargo_c bash ${package}/cargo_c.sh ${PROJECT_SOURCE_DIR} ${CMAKE_CURRENT_BINARY_DIR}/cargo_c ${PROJECT_VERSION}
    ${UPCALL_SOVERSION} ${CMAKE_CURRENT_SOURCE_DIR}/symbols.txt)
