# Defines Upcall's targets, for the build tree and for the installed package alike. The includer says where things are:
# upcall_INCLUDE_DIR, upcall_SHARED_LIBRARY with upcall_SONAME, upcall_STATIC_LIBRARY; a library that is not set is not there.

set(upcall_TARGETS)
if(upcall_SHARED_LIBRARY)
    list(APPEND upcall_TARGETS upcall::shared)
    add_library(upcall::shared SHARED IMPORTED)
    set_target_properties(upcall::shared PROPERTIES
        IMPORTED_LOCATION "${upcall_SHARED_LIBRARY}"
        IMPORTED_SONAME "${upcall_SONAME}"
        INTERFACE_INCLUDE_DIRECTORIES "${upcall_INCLUDE_DIR}")
endif()

if(upcall_STATIC_LIBRARY)
    list(APPEND upcall_TARGETS upcall::static)
    add_library(upcall::static STATIC IMPORTED)
    set_target_properties(upcall::static PROPERTIES
        IMPORTED_LOCATION "${upcall_STATIC_LIBRARY}"
        IMPORTED_LINK_INTERFACE_LANGUAGES C
        INTERFACE_LINK_LIBRARIES "pthread;dl;m"
        INTERFACE_INCLUDE_DIRECTORIES "${upcall_INCLUDE_DIR}")
endif()

# BUILD_SHARED_LIBS chooses where there is a choice.
add_library(upcall::upcall INTERFACE IMPORTED)
if(upcall_STATIC_LIBRARY AND NOT (upcall_SHARED_LIBRARY AND (BUILD_SHARED_LIBS OR NOT DEFINED BUILD_SHARED_LIBS)))
    set_property(TARGET upcall::upcall PROPERTY INTERFACE_LINK_LIBRARIES upcall::static)
else()
    set_property(TARGET upcall::upcall PROPERTY INTERFACE_LINK_LIBRARIES upcall::shared)
endif()
list(APPEND upcall_TARGETS upcall::upcall)

if(EXISTS "${upcall_INCLUDE_DIR}/upcall.hpp")
    list(APPEND upcall_TARGETS upcall::cpp)
    add_library(upcall::cpp INTERFACE IMPORTED)
    set_target_properties(upcall::cpp PROPERTIES
        INTERFACE_LINK_LIBRARIES upcall::upcall
        INTERFACE_COMPILE_FEATURES cxx_std_20)
endif()
